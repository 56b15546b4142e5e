//! An agent that answers with the samples.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, Semaphore};

use skybridge::control::Api;
use skybridge::control::api::Answer;
use skybridge::control::types::*;

use crate::samples;

#[derive(Default)]
pub(crate) struct Fake {
    /// How many sandboxes were attached, whoever waited for it.
    pub(crate) attached: Arc<AtomicUsize>,
    pub(crate) slow: Arc<Slow>,
}

/// Where attaching the sandbox `slow` is held.
pub(crate) struct Slow {
    /// Told when the request has come.
    pub(crate) come: Notify,
    pub(crate) gate: Semaphore,
}

impl Default for Slow {
    fn default() -> Self {
        Self { come: Notify::new(), gate: Semaphore::new(0) }
    }
}

/// Only `blue` exists.
fn blue<T>(network: &str, answer: T) -> Answer<T> {
    match network {
        "blue" => Ok(answer),
        "panic" => panic!("a defect"),
        _ => Err(Error::not_found(format!("there is no network `{network}`"))
            .next_step("`skybridge network ls` shows which there are")),
    }
}

impl Api for Fake {
    async fn status(&self) -> Answer<Status> {
        Ok(samples::status())
    }

    async fn hosts(&self) -> Answer<Vec<Host>> {
        Ok(samples::hosts())
    }

    async fn networks(&self) -> Answer<Vec<Network>> {
        Ok(samples::networks())
    }

    async fn network(&self, network: String) -> Answer<NetworkDetail> {
        blue(&network, samples::network())
    }

    async fn create_network(&self, request: CreateNetwork) -> Answer<NetworkDetail> {
        if request.name == "blue" {
            assert_eq!(request, samples::create_network());
            return Ok(samples::network());
        }
        Err(Error::conflict("the subnet is taken")
            .cause("network `blue` has 198.51.100.0/24")
            .next_step("give another --subnet"))
    }

    async fn update_network(
        &self,
        network: String,
        request: UpdateNetwork,
    ) -> Answer<NetworkDetail> {
        assert_eq!(request, samples::update_network());
        blue(&network, samples::network())
    }

    async fn remove_network(&self, network: String) -> Answer<()> {
        blue(&network, ())
    }

    async fn vteps(&self, network: String) -> Answer<Vec<StaticVtep>> {
        blue(&network, samples::vteps())
    }

    async fn add_vtep(&self, network: String, request: VtepAdd) -> Answer<StaticVtep> {
        assert_eq!(request, samples::vtep_add());
        blue(&network, samples::vteps().remove(1))
    }

    async fn remove_vtep(&self, network: String, address: IpAddr) -> Answer<()> {
        assert_eq!(address, IpAddr::from([192, 0, 2, 9]));
        blue(&network, ())
    }

    async fn exported(&self, network: String) -> Answer<Vec<ExportedEntry>> {
        blue(&network, samples::exported())
    }

    async fn kernel_links(&self, network: String) -> Answer<Vec<KernelLink>> {
        blue(&network, samples::kernel_links())
    }

    async fn link_kernel(&self, network: String, request: LinkKernel) -> Answer<Vec<KernelLink>> {
        assert_eq!(request, samples::link_kernel());
        blue(&network, samples::kernel_links())
    }

    async fn namespace(&self, network: String) -> Answer<Namespace> {
        blue(&network, samples::namespace())
    }

    async fn attach(&self, request: Attach) -> Answer<Attachment> {
        if request.netns == "slow" {
            self.slow.come.notify_one();
            let _pass = self.slow.gate.acquire().await;
        }
        self.attached.fetch_add(1, Ordering::SeqCst);
        blue(&request.network, samples::attachment())
    }

    async fn detach(&self, request: Detach) -> Answer<Vec<Detached>> {
        match request.target()? {
            DetachTarget::Endpoint { .. } => Ok(samples::detached()),
            DetachTarget::Sandbox { network, .. } => blue(network, samples::detached()),
        }
    }

    async fn endpoints(&self, network: Option<String>) -> Answer<Vec<Endpoint>> {
        blue(network.as_deref().unwrap_or("blue"), samples::endpoints())
    }

    async fn fdb(&self, network: Option<String>) -> Answer<Vec<FdbEntry>> {
        blue(network.as_deref().unwrap_or("blue"), samples::fdb())
    }

    async fn neighbors(&self, network: Option<String>) -> Answer<Vec<NeighborEntry>> {
        blue(network.as_deref().unwrap_or("blue"), samples::neighbors())
    }

    async fn routes(&self, network: Option<String>) -> Answer<Vec<RouteEntry>> {
        blue(network.as_deref().unwrap_or("blue"), samples::routes())
    }

    async fn drops(&self) -> Answer<Vec<Drops>> {
        Ok(samples::drops())
    }

    async fn store(&self) -> Answer<StoreAccess> {
        Ok(samples::store_access())
    }

    async fn make_token(&self, request: MakeToken) -> Answer<Token> {
        assert_eq!(request, samples::make_token());
        Ok(samples::token())
    }

    async fn collect_garbage(&self, request: CollectGarbage) -> Answer<Vec<Garbage>> {
        Ok(samples::garbage(request.apply))
    }

    async fn stats(&self) -> Answer<Stats> {
        Ok(samples::stats())
    }
}
