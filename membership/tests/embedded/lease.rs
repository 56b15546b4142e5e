//! Leases, beside etcd.

use etcd_client::{
    Client, Error, GetOptions, LeaseGrantOptions, LeaseTimeToLiveOptions, PutOptions, Txn, TxnOp,
    WatchOptions,
};
use tonic::Code;

use super::harness::{DEADLINE, Transcript, compare, events, message};

async fn grant(client: &mut Client, log: &mut Transcript, id: i64, ttl: i64) {
    let what = format!("grant {id} for {ttl} s");
    log.note(&what, client.lease_grant(ttl, Some(LeaseGrantOptions::new().with_id(id))).await);
}

async fn put(client: &mut Client, log: &mut Transcript, key: &str, lease: i64) {
    let options = PutOptions::new().with_lease(lease);
    log.note("put", client.put(key, "1", Some(options)).await);
}

/// Notes a lease; what is left of it is only said to be within its ttl.
async fn note_lease(client: &mut Client, log: &mut Transcript, id: i64) {
    let options = LeaseTimeToLiveOptions::new().with_keys();
    let mut answer = client.lease_time_to_live(id, Some(options)).await;
    if let Ok(answer) = &mut answer {
        answer.0.keys.sort();
        let (left, granted) = (answer.ttl(), answer.granted_ttl());
        if left >= 0 {
            assert!(left <= granted && left >= granted - 10, "{left} of {granted}");
            answer.0.ttl = granted;
        }
    }
    log.note("lease", answer);
}

#[tokio::test]
async fn grants_and_their_refusals_are_the_same() {
    compare(async |client, log| {
        for (id, ttl) in [(5, 60), (5, 60), (6, 1), (7, 0), (8, -4), (9, 9_000_000_000)] {
            grant(client, log, id, ttl).await;
        }
        grant(client, log, 10, 9_000_000_001).await;
        grant(client, log, -11, 60).await;
        for id in [5, 9, -11, 404] {
            note_lease(client, log, id).await;
        }
        let chosen = client.lease_grant(60, None).await.unwrap().id();
        log.say("chosen", &(chosen > 0).to_string());
        log.note("revoke", client.lease_revoke(404).await);
        log.note("revoke", client.lease_revoke(5).await);
        log.note("revoke", client.lease_revoke(5).await);
        client.lease_revoke(chosen).await.unwrap();
        for id in [6, 7, 8] {
            // The shortest leases may have ended by themselves.
            match client.lease_revoke(id).await {
                Ok(_) => {}
                Err(Error::GRpcStatus(status)) if status.code() == Code::NotFound => {}
                Err(error) => panic!("{error}"),
            }
        }
        let mut left: Vec<_> =
            client.leases().await.unwrap().leases().iter().map(|lease| lease.id()).collect();
        left.sort_unstable();
        log.say("left", &format!("{left:?}"));
        let gone = client.lease_keep_alive(404).await;
        log.say(
            "keep alive",
            &format!("{:?}", gone.map(|_| ()).map_err(|error| error.to_string())),
        );
    })
    .await;
}

#[tokio::test]
async fn a_revoked_lease_takes_its_keys_in_one_revision() {
    compare(async |client, log| {
        grant(client, log, 5, 60).await;
        grant(client, log, 6, 60).await;
        for (key, lease) in [("a", 5), ("b", 5), ("c", 5), ("d", 6), ("e", 5), ("f", 404)] {
            put(client, log, key, lease).await;
        }
        // Moved to another lease, taken off, kept, deleted.
        put(client, log, "b", 6).await;
        log.note("off", client.put("c", "2", None).await);
        let keep = PutOptions::new().with_ignore_lease();
        log.note("kept", client.put("a", "2", Some(keep)).await);
        client.delete("e", None).await.unwrap();
        let ops = [TxnOp::put("g", "1", Some(PutOptions::new().with_lease(5)))];
        client.txn(Txn::new().and_then(ops)).await.unwrap();
        note_lease(client, log, 5).await;
        note_lease(client, log, 6).await;
        let mut stream = client
            .watch("", Some(WatchOptions::new().with_all_keys().with_prev_key()))
            .await
            .unwrap();
        assert!(message(&mut stream).await.created());
        log.note("revoke", client.lease_revoke(5).await);
        for event in events(&mut stream, 2).await {
            log.say("event", &event);
        }
        log.note("all", client.get("", Some(GetOptions::new().with_all_keys())).await);
        note_lease(client, log, 5).await;
        log.note("without keys", client.lease_revoke(6).await);
        put(client, log, "h", 6).await;
    })
    .await;
}

#[tokio::test]
async fn a_lease_expires_unless_it_is_kept() {
    compare(async |client, log| {
        let (ttl, start) = (5, std::time::Instant::now());
        grant(client, log, 5, ttl).await;
        grant(client, log, 6, ttl).await;
        put(client, log, "gone", 5).await;
        put(client, log, "kept", 6).await;
        let (mut keeper, mut answers) = client.lease_keep_alive(6).await.unwrap();
        let options = WatchOptions::new().with_all_keys();
        let mut stream = client.watch("", Some(options)).await.unwrap();
        assert!(message(&mut stream).await.created());
        let keep = async {
            loop {
                keeper.keep_alive().await.unwrap();
                assert_eq!(answers.message().await.unwrap().unwrap().ttl(), ttl);
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
        };
        let gone = tokio::select! {
            events = events(&mut stream, 1) => events,
            () = keep => unreachable!(),
        };
        // Not before its time, however long the test took to get here.
        let seconds = start.elapsed().as_secs_f64();
        assert!((5.0..DEADLINE.as_secs_f64()).contains(&seconds), "expired after {seconds} s");
        log.say("event", &gone.join(" "));
        log.note("left", client.get("", Some(GetOptions::new().with_all_keys())).await);
        note_lease(client, log, 5).await;
        note_lease(client, log, 6).await;
        put(client, log, "again", 5).await;
    })
    .await;
}
