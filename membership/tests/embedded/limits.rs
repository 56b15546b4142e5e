//! Sizes that are refused, beside etcd.

use etcd_client::{PutOptions, Txn, TxnOp};

use super::harness::compare;

#[tokio::test]
async fn requests_that_are_too_large_are_refused_alike() {
    compare(async |client, log| {
        let value = |bytes: usize| vec![b'v'; bytes];
        let kib = 1024;
        log.note("fits", client.put("k", value(1500 * kib), None).await);
        log.note("too large", client.put("k", value(1537 * kib), None).await);
        log.note("too large", client.put("k", value(1900 * kib), None).await);
        let ops = (0..100).map(|n| TxnOp::put(format!("k{n}"), value(16 * kib), None));
        log.note("in sum", client.txn(Txn::new().and_then(ops.collect::<Vec<_>>())).await);
        let huge = client.put("k", value(8 * 1024 * kib), None).await;
        log.say("huge", if huge.is_err() { "refused" } else { "taken" });
        // The connection and the store go on.
        let previous = client.put("k", "1", Some(PutOptions::new().with_prev_key())).await.unwrap();
        log.say("then", &previous.prev_key().unwrap().value().len().to_string());
    })
    .await;
}
