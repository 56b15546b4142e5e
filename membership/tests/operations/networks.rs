//! Networks: made, changed, removed, with their VNIs, static VTEPs and the records of Docker.

use super::*;

crate::on_each_store!(
    networks_are_changed_and_removed,
    networks_are_created_once,
    networks_of_docker_are_kept,
    routed_networks_do_not_overlap,
    static_vteps,
    vnis_are_given_out_once,
);

async fn networks_are_created_once(_: Backend, world: World) {
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = world.store();
        tasks.push(tokio::spawn(async move {
            network::create(&store, &spec("web", &["192.0.2.0/24"])).await
        }));
    }
    let mut winners = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Ok(record) => winners.push(record),
            Err(error) => assert!(matches!(error, network::Error::NameTaken { .. }), "{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(winners[0].vni, Vni::new(4096).unwrap());
    let store = world.store();
    let found = network::get(&store, "web").await.unwrap().record;
    assert_eq!(found, winners[0]);
    assert_eq!(network::get(&store, found.id.as_str()).await.unwrap().record, found);
    let error = network::get(&store, "nothing").await.unwrap_err().to_string();
    assert!(error.contains("nothing") && error.contains("network ls"), "{error}");
}

async fn vnis_are_given_out_once(_: Backend, world: World) {
    let mut tasks = Vec::new();
    for number in 0..12 {
        let store = world.store();
        tasks.push(tokio::spawn(async move {
            network::create(&store, &spec(&format!("n{number}"), &["192.0.2.0/24"])).await.unwrap()
        }));
    }
    let mut vnis = BTreeSet::new();
    for task in tasks {
        assert!(vnis.insert(task.await.unwrap().vni));
    }
    let store = world.store();
    let mut wanted = spec("pinned", &[]);
    wanted.vni = vnis.first().copied();
    let error = network::create(&store, &wanted).await.unwrap_err();
    let network::Error::VniTaken { holder, .. } = &error else { panic!("{error}") };
    assert!(holder.starts_with('n'), "{error}");
    // Several want the same free one: one has it, the others are told who.
    let mut tasks = Vec::new();
    for number in 0..6 {
        let store = world.store();
        let mut wanted = spec(&format!("same{number}"), &[]);
        wanted.vni = Vni::new(77);
        tasks.push(tokio::spawn(async move { network::create(&store, &wanted).await }));
    }
    let mut won = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert!(matches!(error, network::Error::VniTaken { .. }), "{error}"),
        }
    }
    assert_eq!((won, network::list(&store).await.unwrap().len()), (1, 13));
}

async fn networks_are_changed_and_removed(_: Backend, world: World) {
    let store = world.store();
    let created = network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let endpoint = attach(&store, &created, "h1", &EndpointSpec::default()).await.unwrap();
    let changed = network::update(&store, "web", |record| {
        record.mtu = Some(1400);
        Ok(())
    });
    assert_eq!(changed.await.unwrap().mtu, Some(1400));
    let fixed = network::update(&store, "web", |record| {
        record.subnets.clear();
        Ok(())
    });
    assert_eq!(fixed.await.unwrap_err(), network::Error::Fixed("a subnet"));

    let error = network::remove(&store, "web", false).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, network::Error::InUse { count: 1, .. }), "{text}");
    assert!(text.contains(endpoint.id.as_str()) && text.contains("h1"), "{text}");
    network::remove(&store, "web", true).await.unwrap();
    let (_, rest) = store.list(membership::key::Range::All).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
    let gone = attach(&store, &created, "h1", &EndpointSpec::default()).await.unwrap_err();
    assert!(matches!(gone, endpoint::Error::NetworkGone(_)), "{gone}");
    // The name and the VNI are free again.
    assert_eq!(
        network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap().vni,
        created.vni
    );
}

async fn routed_networks_do_not_overlap(_: Backend, world: World) {
    let store = world.store();
    let mut routed = spec("out", &["192.0.2.0/24"]);
    routed.options.nat_outgoing = Some(true);
    let error = network::create(&store, &routed).await.unwrap_err();
    assert!(matches!(error, network::Error::NoGateway("nat_outgoing")), "{error}");
    routed.gateways = vec![ip("192.0.2.1")];
    network::create(&store, &routed).await.unwrap();
    let mut other = spec("other", &["192.0.2.128/25", "2001:db8::/64"]);
    other.gateways = vec![ip("192.0.2.129")];
    other.options.host_access = Some(true);
    let error = network::create(&store, &other).await.unwrap_err();
    assert!(error.to_string().contains("192.0.2.0/24 of network out"), "{error}");
    other.options.host_access = None;
    network::create(&store, &other).await.unwrap();
    let on = |wanted: &'static str| {
        network::update(&store, wanted, |record| {
            record.options.nat_outgoing = Some(true);
            Ok(())
        })
    };
    let error = on("other").await.unwrap_err();
    assert!(matches!(error, network::Error::Overlap { .. }), "{error}");
    // What overlaps with nothing any more may.
    network::remove(&store, "out", false).await.unwrap();
    assert_eq!(on("other").await.unwrap().options.nat_outgoing, Some(true));
}

/// A VTEP that was imported, then given by hand: whether it goes with the last import.
async fn imported_by_hand(store: &Store, vtep: &StaticVtep) -> bool {
    let address = ip("198.51.100.10");
    let told = network::Imported {
        mac: MacAddr([0, 0, 0x5e, 0, 0x53, 2]),
        vtep: address,
        port: None,
        ips: Vec::new(),
        fresh: true,
        local: false,
    };
    let host = host("h1");
    network::import(store, "web", &host, &[told], |_| true).await.unwrap();
    network::vtep_add(store, "web", &StaticVtep { address, ..vtep.clone() }).await.unwrap();
    let record = network::import(store, "web", &host, &[], |_| true).await.unwrap();
    network::vtep_remove(store, "web", address).await.is_err()
        || !record.static_vteps.iter().any(|vtep| vtep.address == address)
}

async fn static_vteps(_: Backend, world: World) {
    let store = world.store();
    network::create(&store, &spec("web", &["192.0.2.0/24"])).await.unwrap();
    let mac = MacAddr([0, 0, 0x5e, 0, 0x53, 1]);
    let mut vtep = StaticVtep::new(ip("198.51.100.9"));
    network::vtep_add(&store, "web", &vtep).await.unwrap();
    vtep.macs.push(StaticMac { mac, ips: vec![ip("192.0.2.9")] });
    let (record, added) = network::vtep_add(&store, "web", &vtep).await.unwrap();
    assert_eq!(record.static_vteps, vec![vtep.clone()]);
    let by_hand = imported_by_hand(&store, &vtep).await;
    assert!(!by_hand, "what somebody wrote down is no import any more");
    let (record, removed) = network::vtep_remove(&store, "web", vtep.address).await.unwrap();
    assert!(removed > added, "{removed:?} is after {added:?}");
    assert!(record.static_vteps.is_empty());
    let again = network::vtep_remove(&store, "web", vtep.address).await.unwrap_err();
    assert!(matches!(again, network::Error::VtepNotFound { .. }), "{again}");
}

/// Nobody removes a network that some Docker has. One that was made for Docker goes with the last.
async fn networks_of_docker_are_kept(_: Backend, world: World) {
    let store = world.store();
    let mut wanted = spec("made", &["192.0.2.0/24"]);
    wanted.labels.insert(docker::MADE_BY.0.to_owned(), docker::MADE_BY.1.to_owned());
    let made = network::create(&store, &wanted).await.unwrap();
    let own = network::create(&store, &spec("own", &["198.51.100.0/24"])).await.unwrap();
    let noted = |network: &NetworkRecord, at: &str, id: &str| DockerNetwork {
        network: network.id.clone(),
        host: host(at),
        id: DockerId::new(id).unwrap(),
        record: DockerRecord::default(),
    };
    let all = [noted(&made, "h1", "a1"), noted(&made, "h2", "b2"), noted(&own, "h3", "c3")];
    for noted in &all {
        assert!(docker::put(&store, noted).await.unwrap());
    }
    let listed = docker::list(&store).await.unwrap();
    assert!(listed.len() == 3 && all.iter().all(|noted| listed.contains(noted)), "{listed:?}");
    let error = network::remove(&store, "made", false).await.unwrap_err().to_string();
    assert!(error.contains("Docker on h1, h2"), "{error}");
    assert_eq!(docker::remove(&store, &all[0]).await.unwrap(), None);
    let gone = docker::remove(&store, &all[1]).await.unwrap();
    assert_eq!(gone.map(|network| network.name), Some(name("made")));
    assert_eq!(docker::remove(&store, &all[1]).await.unwrap(), None, "once more does no harm");
    assert!(!docker::put(&store, &all[1]).await.unwrap(), "there is no such network any more");
    // One that is absent comes back, with a Docker that tells of its networks but once.
    let minute = Duration::from_secs(60);
    let marked = gc::mark_absent(&store, &host("h1"), minute).await.unwrap();
    assert!(marked.contains(&host("h3")), "{marked:?}");
    let absent = gc::Options { grace: Duration::ZERO, host: None };
    gc::collect(&store, &absent, Duration::ZERO, |_| true).await.unwrap();
    assert_eq!(docker::list(&store).await.unwrap(), [all[2].clone()]);
    // A host that does not come back keeps nothing.
    assert!(network::remove(&store, "own", false).await.is_err());
    let options = gc::Options { grace: minute, host: Some(host("h3")) };
    gc::collect(&store, &options, Duration::ZERO, |_| true).await.unwrap();
    assert_eq!(docker::list(&store).await.unwrap(), []);
    network::remove(&store, "own", false).await.unwrap();
}
