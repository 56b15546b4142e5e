//! `skybridge network vtep export` and `import`.

use std::process::ExitCode;

use super::args::{ExportFormat, VtepExportArgs, VtepImportArgs};
use super::{Failure, checked, client, print, render, show};
use crate::control::types::{KernelAction, KernelDirection, LinkKernel};

/// Prints the entries, or has the agent enter them.
pub(super) async fn export(args: VtepExportArgs) -> Result<ExitCode, Failure> {
    let client = client(&args.listing.connection);
    let action = match (args.apply, args.watch, args.stop) {
        (true, ..) => KernelAction::Once,
        (_, true, _) => KernelAction::Follow,
        (_, _, true) => KernelAction::Stop,
        _ => {
            let entries = client.exported(&args.network).await?;
            let ExportFormat::BridgeFdb = args.format;
            let netns = args.device.netns.as_deref();
            return show(&args.listing, &entries, |entries, _| {
                render::exported(entries, netns, &args.device.dev)
            });
        }
    };
    let request = LinkKernel {
        direction: KernelDirection::Export,
        action,
        netns: args.device.netns,
        dev: args.device.dev,
        vtep: None,
        host: None,
    };
    checked(&request)?;
    let answer = client.link_kernel(&args.network, &request).await?;
    show(&args.listing, &answer, |links, style| render::kernel_links(links, style))
}

/// Has the agent follow a device, or no longer.
pub(super) async fn import(args: VtepImportArgs) -> Result<ExitCode, Failure> {
    let action = if args.stop { KernelAction::Stop } else { KernelAction::Follow };
    let request = LinkKernel {
        direction: KernelDirection::Import,
        action,
        netns: args.device.netns,
        dev: args.device.dev,
        vtep: args.vtep,
        host: args.host.clone(),
    };
    checked(&request)?;
    let client = client(&args.listing.connection);
    let answer = client.link_kernel(&args.network, &request).await?;
    match args.host {
        Some(host) if !args.listing.json => {
            print(&format!("removed what {host} imported into network {}\n", args.network))
        }
        _ => show(&args.listing, &answer, |links, style| render::kernel_links(links, style)),
    }
}
