//! Transactions, beside etcd.

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, GetOptions, PutOptions, Txn, TxnOp};

use super::harness::{Transcript, compare};

async fn txn(client: &mut Client, log: &mut Transcript, what: &str, txn: Txn) {
    log.note(what, client.txn(txn).await);
    log.note("then", client.get("", Some(GetOptions::new().with_all_keys())).await);
}

fn put(key: &str, value: &str) -> TxnOp {
    TxnOp::put(key, value, None)
}

fn get(key: &str) -> TxnOp {
    TxnOp::get(key, None)
}

fn delete(key: &str, end: &str) -> TxnOp {
    let options = DeleteOptions::new().with_range(end).with_prev_key();
    TxnOp::delete(key, Some(options))
}

const RESULTS: [CompareOp; 4] =
    [CompareOp::Equal, CompareOp::Greater, CompareOp::Less, CompareOp::NotEqual];

#[tokio::test]
async fn every_comparison_is_the_same() {
    compare(async |client, log| {
        client
            .lease_grant(600, Some(etcd_client::LeaseGrantOptions::new().with_id(7)))
            .await
            .unwrap();
        client.put("a", "1", None).await.unwrap();
        client.put("a", "2", None).await.unwrap();
        client.put("b", "3", Some(PutOptions::new().with_lease(7))).await.unwrap();
        let mut compares = Vec::new();
        for key in ["a", "b", "missing"] {
            for op in RESULTS {
                for number in [0, 1, 2, 3, 4, 7] {
                    compares.push(Compare::version(key, op, number));
                    compares.push(Compare::create_revision(key, op, number));
                    compares.push(Compare::mod_revision(key, op, number));
                    compares.push(Compare::lease(key, op, number));
                }
                for value in ["", "2", "3"] {
                    compares.push(Compare::value(key, op, value));
                }
            }
        }
        for op in RESULTS {
            for end in ["b", "c", "\0", "a"] {
                compares.push(Compare::version("a", op, 1).with_range(end));
                compares.push(Compare::mod_revision("a", op, 3).with_range(end));
                compares.push(Compare::value("a", op, "2").with_range(end));
                compares.push(Compare::lease("x", op, 0).with_range(end));
                compares.push(Compare::value("x", op, "").with_range(end));
            }
            compares.push(Compare::create_revision("a", op, 1).with_prefix());
        }
        for compare in compares {
            let what = format!("{compare:?}");
            let answer = client.txn(Txn::new().when([compare])).await;
            log.note(&what, answer.map(|answer| answer.succeeded()));
        }
        // All of them have to hold.
        let one = Compare::version("a", CompareOp::Equal, 2);
        let other = Compare::version("b", CompareOp::Equal, 2);
        txn(client, log, "both", Txn::new().when([one, other]).and_then([get("a")])).await;
        log.note(
            "no key",
            client.txn(Txn::new().when([Compare::version("", CompareOp::Equal, 0)])).await,
        );
    })
    .await;
}

#[tokio::test]
async fn operations_see_each_other_at_one_revision() {
    compare(async |client, log| {
        txn(client, log, "empty", Txn::new()).await;
        txn(client, log, "puts", Txn::new().and_then([put("a", "1"), put("b", "1")])).await;
        let ops = [
            get("a"),
            TxnOp::put("a", "2", Some(PutOptions::new().with_prev_key())),
            get("a"),
            delete("b", "c"),
            get("b"),
            TxnOp::get("", Some(GetOptions::new().with_all_keys().with_count_only())),
            put("c", "1"),
        ];
        txn(client, log, "mixed", Txn::new().and_then(ops)).await;
        txn(client, log, "only reads", Txn::new().and_then([get("a"), get("b")])).await;
        txn(client, log, "deletes nothing", Txn::new().and_then([delete("x", "y")])).await;
        let old = |revision| TxnOp::get("a", Some(GetOptions::new().with_revision(revision)));
        for revision in [-1, 0, 1, 2, 3, 4, 5] {
            let what = format!("reads at {revision}");
            txn(client, log, &what, Txn::new().and_then([old(revision)])).await;
            let writes = Txn::new().and_then([put("z", "1"), old(revision)]);
            txn(client, log, &what, writes).await;
        }
        client.compact(5, None).await.unwrap();
        txn(client, log, "compacted", Txn::new().and_then([old(2)])).await;
        txn(client, log, "compacted", Txn::new().and_then([put("y", "1"), old(2)])).await;
        let missing = CompareOp::Equal;
        let guarded = Txn::new()
            .when([Compare::version("new", missing, 0)])
            .and_then([put("new", "mine")])
            .or_else([get("new")]);
        txn(client, log, "create", guarded.clone()).await;
        txn(client, log, "create again", guarded).await;
    })
    .await;
}

#[tokio::test]
async fn nested_transactions_are_decided_before_anything_runs() {
    compare(async |client, log| {
        let exists = |key: &str| Compare::version(key, CompareOp::Greater, 0);
        let inner = Txn::new().when([exists("a")]).and_then([get("a")]).or_else([put("b", "no a")]);
        let outer = Txn::new().and_then([put("a", "1"), TxnOp::txn(inner.clone()), get("b")]);
        txn(client, log, "the inner one does not see the put", outer).await;
        let outer = Txn::new().and_then([put("c", "1"), TxnOp::txn(inner)]);
        txn(client, log, "now it does", outer).await;
        let deep = Txn::new().and_then([TxnOp::txn(
            Txn::new().and_then([put("d", "1"), TxnOp::txn(Txn::new().and_then([put("e", "1")]))]),
        )]);
        txn(client, log, "deep", deep).await;
        let reads = Txn::new().and_then([TxnOp::txn(Txn::new().and_then([get("a")]))]);
        txn(client, log, "nested reads", reads).await;
        let later = Txn::new().and_then([
            TxnOp::txn(Txn::new().and_then([put("f", "1")])),
            TxnOp::txn(Txn::new().and_then([delete("f", "g")])),
        ]);
        txn(client, log, "put, then deleted by a later sibling", later).await;
    })
    .await;
}

#[tokio::test]
async fn refusals_leave_nothing_half_done() {
    compare(async |client, log| {
        let nested = |ops: Vec<TxnOp>| TxnOp::txn(Txn::new().and_then(ops));
        let either = |then: TxnOp, other: TxnOp| {
            let never = Compare::version("never", CompareOp::Greater, 0);
            TxnOp::txn(Txn::new().when([never]).and_then([then]).or_else([other]))
        };
        for (what, ops) in [
            ("twice", vec![put("a", "1"), put("a", "2")]),
            ("put and delete", vec![put("a", "1"), delete("a", "")]),
            ("delete and put", vec![delete("a", ""), put("a", "1")]),
            ("put in a deleted range", vec![delete("a", "c"), put("b", "1")]),
            ("put at its end", vec![delete("a", "c"), put("c", "1")]),
            ("delete twice", vec![delete("a", "c"), delete("b", "d")]),
            ("all deleted", vec![delete("a", "\0"), put("b", "1")]),
            ("twice, nested", vec![put("a", "1"), nested(vec![put("a", "2")])]),
            ("siblings", vec![nested(vec![put("a", "1")]), nested(vec![put("a", "2")])]),
            ("branches", vec![either(put("a", "1"), put("a", "2"))]),
            ("branches and one", vec![either(put("a", "1"), put("b", "2")), put("b", "1")]),
            (
                "nested delete, later put",
                vec![nested(vec![delete("a", "c")]), nested(vec![put("b", "1")])],
            ),
            ("nested delete, outer put", vec![nested(vec![delete("a", "c")]), put("b", "1")]),
            ("no key", vec![put("ok", "1"), put("", "1")]),
            ("no key to get", vec![put("ok", "1"), get("")]),
            ("no key to delete", vec![put("ok", "1"), delete("", "")]),
            (
                "lease",
                vec![put("ok", "1"), TxnOp::put("l", "1", Some(PutOptions::new().with_lease(99)))],
            ),
            (
                "value of nothing",
                vec![
                    put("ok", "1"),
                    TxnOp::put("l", "", Some(PutOptions::new().with_ignore_value())),
                ],
            ),
            (
                "value given",
                vec![TxnOp::put("l", "1", Some(PutOptions::new().with_ignore_value()))],
            ),
            (
                "future",
                vec![put("ok", "1"), TxnOp::get("a", Some(GetOptions::new().with_revision(50)))],
            ),
            ("at the bound", (0..128).map(|n| put(&format!("n{n}"), "1")).collect()),
            ("above the bound", (0..129).map(|n| put(&format!("m{n}"), "1")).collect()),
            (
                "above the bound with what is nested",
                vec![nested((0..128).map(|n| put(&format!("m{n}"), "1")).collect())],
            ),
            (
                "at the bound with what is nested",
                vec![nested((0..127).map(|n| put(&format!("m{n}"), "1")).collect())],
            ),
        ] {
            txn(client, log, what, Txn::new().and_then(ops.clone())).await;
            let never = Compare::version("never", CompareOp::Greater, 0);
            txn(client, log, what, Txn::new().when([never]).and_then(ops)).await;
        }
    })
    .await;
}
