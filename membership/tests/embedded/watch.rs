//! Watches, beside etcd.

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, Txn, TxnOp, WatchFilterType, WatchOptions,
    WatchStream,
};

use super::harness::{Transcript, compare, events, message};

async fn note_events(stream: &mut WatchStream, log: &mut Transcript, count: usize) {
    for event in events(stream, count).await {
        log.say("event", &event);
    }
}

/// Notes a message that concerns a watch as a whole, without its revision, which depends on when
/// the store got to it.
async fn note_control(stream: &mut WatchStream, log: &mut Transcript) {
    let response = message(stream).await;
    assert!(response.events().is_empty(), "{response:?}");
    log.say(
        "control",
        &format!(
            "id {} created {} canceled {} compacted {} reason {:?}",
            response.watch_id(),
            response.created(),
            response.canceled(),
            response.compact_revision(),
            response.cancel_reason()
        ),
    );
}

/// Revisions 2 to 6, the last with three changes.
async fn fill(client: &mut Client) {
    client.put("a", "1", None).await.unwrap();
    client.put("b", "1", None).await.unwrap();
    client.put("a", "2", None).await.unwrap();
    client.delete("a", None).await.unwrap();
    let ops = [TxnOp::put("a", "3", None), TxnOp::put("c", "1", None), TxnOp::delete("b", None)];
    client.txn(Txn::new().and_then(ops)).await.unwrap();
}

#[tokio::test]
async fn a_watch_sees_what_comes_and_what_was() {
    compare(async |client, log| {
        let all = || WatchOptions::new().with_all_keys();
        let mut live = client.watch("", Some(all())).await.unwrap();
        note_control(&mut live, log).await;
        fill(client).await;
        note_events(&mut live, log, 7).await;
        for revision in [1, 2, 4, 6] {
            let options = all().with_start_revision(revision).with_prev_key();
            let mut past = client.watch("", Some(options)).await.unwrap();
            note_control(&mut past, log).await;
            note_events(&mut past, log, [0, 7, 7, 6, 5, 4, 3][revision as usize]).await;
        }
        // One that starts later sees nothing before.
        let options = all().with_start_revision(8);
        let mut future = client.watch("", Some(options)).await.unwrap();
        note_control(&mut future, log).await;
        client.put("a", "at 7", None).await.unwrap();
        client.put("a", "at 8", None).await.unwrap();
        note_events(&mut future, log, 1).await;
        note_events(&mut live, log, 2).await;
    })
    .await;
}

#[tokio::test]
async fn ranges_filters_and_previous_values_are_the_same() {
    compare(async |client, log| {
        let mut stream = client.watch("a", None).await.unwrap();
        note_control(&mut stream, log).await;
        let new = WatchOptions::new;
        for (key, options) in [
            ("a", new().with_prefix().with_prev_key()),
            ("a", new().with_range("c").with_prev_key()),
            ("b", new().with_from_key()),
            ("", new()),
            ("a", new().with_filters([WatchFilterType::NoPut]).with_prev_key()),
            ("a", new().with_filters([WatchFilterType::NoDelete])),
            ("a", new().with_filters([WatchFilterType::NoDelete, WatchFilterType::NoPut])),
            ("c", new().with_range("a")),
            ("c", new().with_range("c")),
            ("c", new().with_watch_id(20)),
            ("c", new().with_watch_id(20)),
            ("c", new().with_watch_id(9)),
            ("c", new().with_start_revision(-7)),
            ("c", new().with_watch_id(-5)),
        ] {
            stream.watch(key, Some(options)).await.unwrap();
            note_control(&mut stream, log).await;
        }
        fill(client).await;
        // a: 4; a*: 4; a..c: 6; b..: 3; NoPut: 1; NoDelete: 3; c three times.
        note_events(&mut stream, log, 24).await;
        stream.cancel(20).await.unwrap();
        note_control(&mut stream, log).await;
        stream.cancel(555).await.unwrap();
        stream.watch("after", None).await.unwrap();
        note_control(&mut stream, log).await;
        client.put("c", "2", None).await.unwrap();
        note_events(&mut stream, log, 3).await;
    })
    .await;
}

#[tokio::test]
async fn events_of_one_revision_come_in_one_message() {
    compare(async |client, log| {
        let options = WatchOptions::new().with_all_keys();
        let mut stream = client.watch("", Some(options)).await.unwrap();
        note_control(&mut stream, log).await;
        let puts: Vec<_> =
            (0..100).map(|n| TxnOp::put(format!("k{n:03}"), vec![b'x'; 8000], None)).collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
        log.say("in one", &message(&mut stream).await.events().len().to_string());
        client.delete("k", Some(DeleteOptions::new().with_prefix())).await.unwrap();
        log.note("order", Ok(message(&mut stream).await.events().to_vec()));
        let guarded = Txn::new().when([Compare::version("k", CompareOp::Greater, 0)]);
        client.txn(guarded).await.unwrap();
        client.put("last", "1", None).await.unwrap();
        log.note("nothing in between", Ok(message(&mut stream).await.events().to_vec()));
    })
    .await;
}

#[tokio::test]
async fn a_fragmented_watch_gets_pieces_that_make_up_the_revision() {
    compare(async |client, log| {
        for part in 0..3 {
            let puts: Vec<_> = (0..100)
                .map(|n| TxnOp::put(format!("k{part}{n:03}"), vec![b'x'; 10_000], None))
                .collect();
            client.txn(Txn::new().and_then(puts)).await.unwrap();
        }
        let options = WatchOptions::new().with_all_keys().with_fragment().with_prev_key();
        let mut stream = client.watch("", Some(options)).await.unwrap();
        note_control(&mut stream, log).await;
        client.delete("k", Some(DeleteOptions::new().with_prefix())).await.unwrap();
        let mut total = 0;
        let mut pieces = 0;
        loop {
            let response = message(&mut stream).await;
            total += response.events().len();
            pieces += 1;
            if !response.0.fragment {
                break;
            }
        }
        assert!(pieces > 1);
        log.say("events", &total.to_string());
    })
    .await;
}

#[tokio::test]
async fn a_watch_below_the_compaction_is_canceled_with_its_revision() {
    compare(async |client, log| {
        fill(client).await;
        client.compact(5, None).await.unwrap();
        for revision in [1, 4, 5, 6] {
            let options = WatchOptions::new().with_all_keys().with_start_revision(revision);
            let mut stream = client.watch("", Some(options.with_prev_key())).await.unwrap();
            note_control(&mut stream, log).await;
            if revision < 5 {
                note_control(&mut stream, log).await;
            } else {
                note_events(&mut stream, log, if revision == 5 { 4 } else { 3 }).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn progress_is_told_when_asked_and_by_the_clock() {
    compare(async |client, log| {
        fill(client).await;
        let options = WatchOptions::new().with_progress_notify();
        let mut stream = client.watch("quiet", Some(options)).await.unwrap();
        note_control(&mut stream, log).await;
        // By the clock: for the watch, at the revision the store is at.
        log.note("clock", Ok(message(&mut stream).await));

        let mut stream = client.watch("quiet", None).await.unwrap();
        note_control(&mut stream, log).await;
        stream.request_progress().await.unwrap();
        log.note("asked", Ok(message(&mut stream).await));
        stream.watch("other", None).await.unwrap();
        note_control(&mut stream, log).await;
        client.put("unrelated", "1", None).await.unwrap();
        stream.request_progress().await.unwrap();
        log.note("asked", Ok(message(&mut stream).await));
    })
    .await;
}
