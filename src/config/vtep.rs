//! The VTEPs of this host.

use std::net::IpAddr;

use toml::Spanned;
use toml::value::{Table, Value};

use super::file::{self, Vteps};
use super::layers::{Layers, list, number};
use super::{Error, Flags, Purpose, VTEPS_MAX, Vtep};
use crate::control::check::{self, Invalid};

pub(super) fn vteps(
    layers: &mut Layers<'_>,
    flags: &Flags,
    file: Option<Spanned<Vteps>>,
    udp_port: u16,
    purpose: Purpose,
) -> Result<Vec<Vtep>, Error> {
    const KEY: &str = "vtep";
    let flag = list(flags.vtep.clone()).map(|addresses| {
        let vtep = |address| file::Vtep { address, ..file::Vtep::default() };
        Vteps(addresses.into_iter().map(vtep).collect())
    });
    let Some(found) = layers.pick(flag, "vtep", file) else {
        layers.note_unset(KEY);
        return match purpose {
            Purpose::CleanUp => Ok(Vec::new()),
            Purpose::Run => Err(Error::Missing { key: KEY, next_step: suggest_vtep() }),
        };
    };
    let found = found.parse(KEY, |Vteps(written)| {
        let vteps: Vec<Vtep> =
            written.into_iter().map(|vtep| vtep_of(vtep, udp_port)).collect::<Result<_, _>>()?;
        let one_each = |family: fn(&IpAddr) -> bool| {
            vteps.iter().filter(|vtep| family(&vtep.advertise)).count() <= 1
        };
        let count = vteps.len();
        if count == 0
            || count > VTEPS_MAX
            || !one_each(IpAddr::is_ipv4)
            || !one_each(IpAddr::is_ipv6)
        {
            return Err(Invalid::new(
                "a host has one VTEP per family",
                "give one IPv4 address, one IPv6 address, or one of each",
            ));
        }
        Ok(vteps)
    })?;
    let value = Value::Array(found.value.iter().map(|vtep| vtep_value(vtep, udp_port)).collect());
    layers.note(KEY, &found, value);
    Ok(found.value)
}

fn vtep_of(written: file::Vtep, udp_port: u16) -> Result<Vtep, Invalid> {
    let unicast = |text: &str| {
        check::ip(text)
            .map_err(|invalid| Invalid { cause: format!("`{text}`: {}", invalid.cause), ..invalid })
    };
    let advertise = unicast(&written.address)?;
    let bind = written.bind.as_deref().map_or(Ok(advertise), unicast)?;
    let accept = written.accept.iter().map(|text| unicast(text)).collect::<Result<Vec<_>, _>>()?;
    let other = |ip: &&IpAddr| ip.is_ipv4() != advertise.is_ipv4();
    if let Some(other) = accept.iter().chain([&bind]).find(other) {
        return Err(Invalid::new(
            format!("{other} is of another family than {advertise}"),
            "give the addresses of one VTEP in one family",
        ));
    }
    let port = number(written.port.unwrap_or_else(|| udp_port.into()), &(1..=65_535))?;
    let mtu = written.mtu.map(|mtu| number(mtu, &(576..=65_535))).transpose()?;
    Ok(Vtep {
        advertise,
        bind,
        port: u16::try_from(port).unwrap_or(udp_port),
        mtu: mtu.and_then(|mtu| u16::try_from(mtu).ok()),
        accept,
    })
}

fn vtep_value(vtep: &Vtep, udp_port: u16) -> Value {
    let text = |ip: &IpAddr| Value::String(ip.to_string());
    let mut table = Table::new();
    table.insert("address".to_owned(), text(&vtep.advertise));
    if vtep.bind != vtep.advertise {
        table.insert("bind".to_owned(), text(&vtep.bind));
    }
    if vtep.port != udp_port {
        table.insert("port".to_owned(), Value::Integer(vtep.port.into()));
    }
    if let Some(mtu) = vtep.mtu {
        table.insert("mtu".to_owned(), Value::Integer(mtu.into()));
    }
    if !vtep.accept.is_empty() {
        table.insert("accept".to_owned(), Value::Array(vtep.accept.iter().map(text).collect()));
    }
    if table.len() == 1 { text(&vtep.advertise) } else { Value::Table(table) }
}

/// Names this machine's addresses, so that the user sees which one to write.
fn suggest_vtep() -> String {
    let mut found = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let ip: IpAddr = match interface.address {
            Some(address) => match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => v4.ip().into(),
                (_, Some(v6)) if !v6.ip().is_unicast_link_local() => v6.ip().into(),
                _ => continue,
            },
            None => continue,
        };
        if !ip.is_loopback() {
            found.push(format!("{ip} ({})", interface.interface_name));
        }
    }
    found.truncate(4);
    let here = match found.is_empty() {
        true => String::new(),
        false => format!("; this machine has {}", found.join(", ")),
    };
    format!("give the underlay address that other hosts reach this one at, with --vtep IP{here}")
}
