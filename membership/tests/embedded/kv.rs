//! Range, put, delete and compaction, beside etcd.

use etcd_client::{
    Client, CompactionOptions, DeleteOptions, GetOptions, PutOptions, SortOrder, SortTarget,
};

use super::harness::{Transcript, compare};

/// Revisions 2 to 9: a..e with values in the opposite order, a and c changed, d deleted.
async fn fill(client: &mut Client) {
    for (key, value) in [("a", "5"), ("b", "4"), ("c", "3"), ("d", "2"), ("e", "1")] {
        client.put(key, value, None).await.unwrap();
    }
    client.put("a", "5x", None).await.unwrap();
    client.put("c", "3x", None).await.unwrap();
    client.delete("d", None).await.unwrap();
}

async fn get(client: &mut Client, log: &mut Transcript, key: &str, options: GetOptions) {
    let what = format!("get {key:?} {options:?}");
    log.note(&what, client.get(key, Some(options)).await);
}

#[tokio::test]
async fn ranges_of_every_form_are_the_same() {
    compare(async |client, log| {
        get(client, log, "nothing", GetOptions::new()).await;
        fill(client).await;
        let new = GetOptions::new;
        for options in [
            new(),
            new().with_range("c"),
            new().with_range("a"),
            new().with_range("Z"),
            new().with_prefix(),
            new().with_from_key(),
            new().with_all_keys(),
        ] {
            for key in ["a", "b", "c", "d", "zz"] {
                get(client, log, key, options.clone()).await;
            }
        }
        get(client, log, "", new()).await;
        get(client, log, "", new().with_range("b")).await;
        get(client, log, "", new().with_all_keys()).await;
        get(client, log, "", new().with_prefix()).await;
    })
    .await;
}

#[tokio::test]
async fn limits_counts_and_selections_are_the_same() {
    compare(async |client, log| {
        fill(client).await;
        let all = || GetOptions::new().with_all_keys();
        for limit in [-1, 0, 1, 3, 4, 5, i64::MAX] {
            get(client, log, "", all().with_limit(limit)).await;
            get(client, log, "", all().with_limit(limit).with_count_only()).await;
            get(client, log, "", all().with_limit(limit).with_keys_only()).await;
            get(client, log, "", all().with_limit(limit).with_serializable()).await;
            get(client, log, "", all().with_limit(limit).with_min_mod_revision(5)).await;
        }
        for revision in [-1, 1, 2, 6, 7, 8, 100] {
            get(client, log, "", all().with_min_mod_revision(revision)).await;
            get(client, log, "", all().with_max_mod_revision(revision)).await;
            get(client, log, "", all().with_min_create_revision(revision)).await;
            get(client, log, "", all().with_max_create_revision(revision)).await;
        }
        let both = all().with_min_mod_revision(3).with_max_create_revision(3);
        get(client, log, "", both).await;
    })
    .await;
}

#[tokio::test]
async fn every_order_is_the_same() {
    compare(async |client, log| {
        fill(client).await;
        for target in [SortTarget::Key, SortTarget::Create, SortTarget::Mod, SortTarget::Value] {
            for order in [SortOrder::None, SortOrder::Ascend, SortOrder::Descend] {
                for limit in [0, 2] {
                    let options = GetOptions::new().with_all_keys().with_limit(limit);
                    get(client, log, "", options.with_sort(target, order)).await;
                }
            }
        }
        // Versions tie, and ties have no order; the two highest do not.
        client.put("a", "5y", None).await.unwrap();
        let options = GetOptions::new().with_all_keys().with_limit(2);
        get(client, log, "", options.with_sort(SortTarget::Version, SortOrder::Descend)).await;
    })
    .await;
}

#[tokio::test]
async fn puts_and_deletes_are_the_same() {
    compare(async |client, log| {
        let new = PutOptions::new;
        for options in [
            new(),
            new().with_prev_key(),
            new().with_ignore_value(),
            new().with_ignore_lease(),
            new().with_lease(77),
            new().with_prev_key().with_ignore_lease(),
        ] {
            for (key, value) in [("k", "1"), ("k", ""), ("new", "1"), ("", "1")] {
                let what = format!("put {key:?} {value:?} {options:?}");
                log.note(&what, client.put(key, value, Some(options.clone())).await);
                let k = client.get("k", None).await;
                log.note("then", k);
            }
        }
        fill(client).await;
        let new = DeleteOptions::new;
        for (key, options) in [
            ("nothing", new()),
            ("a", new()),
            ("a", new().with_prev_key()),
            ("b", new().with_prev_key()),
            ("c", new().with_range("b").with_prev_key()),
            ("", new()),
            ("", new().with_range("b")),
            ("c", new().with_prefix().with_prev_key()),
            ("e", new().with_from_key().with_prev_key()),
            ("", new().with_all_keys()),
            ("", new().with_all_keys().with_prev_key()),
        ] {
            log.note(
                &format!("delete {key:?} {options:?}"),
                client.delete(key, Some(options)).await,
            );
            get(client, log, "", GetOptions::new().with_all_keys()).await;
        }
        // A key that comes back starts again.
        log.note("again", client.put("a", "1", Some(PutOptions::new().with_prev_key())).await);
        get(client, log, "a", GetOptions::new()).await;
    })
    .await;
}

#[tokio::test]
async fn history_and_compaction_are_the_same() {
    compare(async |client, log| {
        log.note("future", client.compact(5, None).await);
        fill(client).await;
        let history = async |client: &mut Client, log: &mut Transcript| {
            for revision in [-3, 1, 2, 5, 6, 7, 8, 9, 10, i64::MAX] {
                let options = GetOptions::new().with_all_keys().with_revision(revision);
                get(client, log, "", options).await;
            }
        };
        history(client, log).await;
        log.note("compact", client.compact(6, None).await);
        history(client, log).await;
        log.note("the same again", client.compact(6, None).await);
        log.note("below", client.compact(2, None).await);
        log.note("above", client.compact(100, None).await);
        let physical = Some(CompactionOptions::new().with_physical());
        log.note("to the end", client.compact(9, physical).await);
        history(client, log).await;
        log.note("negative", client.compact(-4, None).await);
        fill(client).await;
        history(client, log).await;
    })
    .await;
}

#[tokio::test]
async fn a_streamed_range_is_the_same_range() {
    compare(async |client, log| {
        fill(client).await;
        for n in 0..300 {
            client.put(format!("n{n:03}"), vec![b'v'; 10_000], None).await.unwrap();
        }
        let all = || GetOptions::new().with_all_keys();
        for options in [
            all(),
            all().with_limit(7),
            all().with_limit(400),
            all().with_revision(9),
            all().with_revision(1000),
            all().with_count_only(),
            GetOptions::new().with_range("b"),
            all().with_sort(SortTarget::Mod, SortOrder::Ascend),
            all().with_min_mod_revision(5),
        ] {
            let what = format!("{options:?}");
            let mut whole = etcd_client::proto::PbRangeResponse::default();
            let read = async {
                let mut stream = client.kv_client().get_stream("", Some(options)).await?;
                while let Some(part) = stream.message().await? {
                    whole.kvs.extend(part.0.kvs);
                    whole.header = part.0.header.or_else(|| whole.header.take());
                    whole.more |= part.0.more;
                    whole.count = whole.count.max(part.0.count);
                }
                Ok(())
            };
            let read: Result<(), etcd_client::Error> = read.await;
            log.note(&what, read.map(|()| whole));
        }
    })
    .await;
}
