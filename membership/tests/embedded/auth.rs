//! Users and roles, beside etcd: who may what, in the same words.

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions,
    LeaseGrantOptions, LeaseTimeToLiveOptions, Permission, PutOptions, RoleRevokePermissionOptions,
    Txn, TxnOp, UserAddOptions, WatchOptions,
};

use super::harness::{Backend, DEADLINE, Transcript, compare_backends, message};

async fn login(backend: &Backend, name: &str, password: &str) -> Result<Client, Error> {
    let options = ConnectOptions::new().with_timeout(DEADLINE).with_user(name, password);
    Client::connect([&backend.endpoint], Some(options)).await
}

/// root, a user `h1` that may read and write below `/a/` and read `/b`, and `guest`, who may
/// nothing. Authentication is on when it returns.
async fn set_up(client: &mut Client) {
    client.user_add("root", "secret", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.role_add("host").await.unwrap();
    let below = Permission::read_write("/a/").with_prefix();
    client.role_grant_permission("host", below).await.unwrap();
    client.role_grant_permission("host", Permission::read("/b")).await.unwrap();
    client.role_grant_permission("host", Permission::write("/w")).await.unwrap();
    client.user_add("h1", "pass", None).await.unwrap();
    client.user_grant_role("h1", "host").await.unwrap();
    client.user_add("guest", "guest", None).await.unwrap();
    client.put("/a/1", "1", None).await.unwrap();
    client.put("/b", "1", None).await.unwrap();
    client.put("/c", "1", None).await.unwrap();
    client.auth_enable().await.unwrap();
}

#[tokio::test]
async fn users_and_roles_are_kept_as_etcd_keeps_them() {
    compare_backends(async |backend, log| {
        let mut client = backend.client().await.unwrap();
        let c = &mut client;
        log.note("enable without root", c.auth_enable().await);
        log.note("disable while off", c.auth_disable().await);
        log.note("no users", c.user_list().await);
        log.note("no roles", c.role_list().await);
        log.note("add", c.user_add("root", "secret", None).await);
        log.note("add again", c.user_add("root", "other", None).await);
        log.note("add nobody", c.user_add("", "x", None).await);
        let none = UserAddOptions::new().with_no_pwd();
        log.note("add without password", c.user_add("cert", "", Some(none)).await);
        log.note("enable without the role", c.auth_enable().await);
        log.note("grant what is not", c.user_grant_role("root", "nothing").await);
        log.note("grant to nobody", c.user_grant_role("nobody", "root").await);
        log.note("grant", c.user_grant_role("root", "root").await);
        log.note("grant again", c.user_grant_role("root", "root").await);
        log.note("get user", c.user_get("root").await);
        log.note("get nobody", c.user_get("nobody").await);
        log.note("get a role that is granted and not there", c.role_get("root").await);
        log.note("add role", c.role_add("root").await);
        log.note("get root", c.role_get("root").await);
        log.note("add role again", c.role_add("root").await);
        log.note("add role without name", c.role_add("").await);
        log.note("add role", c.role_add("r").await);
        for permission in [
            Permission::read("k"),
            Permission::write("k").with_range_end("m"),
            Permission::read_write("a").with_prefix(),
            Permission::read("z").with_from_key(),
            Permission::read("").with_all_keys(),
            Permission::read_write("k"),
            Permission::read(""),
            Permission::read("b").with_range_end("a"),
            Permission::read("b").with_range_end("b"),
        ] {
            let what = format!("grant {permission:?}");
            log.note(&what, c.role_grant_permission("r", permission).await);
        }
        log.note("grant to none", c.role_grant_permission("none", Permission::read("k")).await);
        let mut permissions = c.role_get("r").await.unwrap().permissions();
        // The order of permissions that begin with the same key is etcd's own affair.
        permissions.sort_by_key(|p| format!("{p:?}"));
        log.say("role", &format!("{permissions:?}"));
        log.note("revoke what is not", c.role_revoke_permission("r", "q", None).await);
        let range = RoleRevokePermissionOptions::new().with_range_end("m");
        log.note("revoke", c.role_revoke_permission("r", "k", Some(range)).await);
        log.note("revoke of none", c.role_revoke_permission("none", "k", None).await);
        log.note("change password", c.user_change_password("root", "new").await);
        log.note("change password of nobody", c.user_change_password("nobody", "new").await);
        log.note("revoke role", c.user_revoke_role("root", "r").await);
        log.note("grant", c.user_grant_role("cert", "r").await);
        log.note("delete role", c.role_delete("r").await);
        log.note("delete role again", c.role_delete("r").await);
        log.note("its users", c.user_get("cert").await);
        log.note("delete", c.user_delete("cert").await);
        log.note("delete again", c.user_delete("cert").await);
        log.note("users", c.user_list().await);
        log.note("roles", c.role_list().await);
        log.note("enable", c.auth_enable().await);
        log.note("nobody", c.user_list().await);
        log.note("wrong password", login(backend, "root", "secret").await.map(|_| ()));
        log.note("wrong user", login(backend, "nobody", "new").await.map(|_| ()));
        let mut root = login(backend, "root", "new").await.unwrap();
        log.note("enable again", root.auth_enable().await);
        log.note("delete root", root.user_delete("root").await);
        log.note("delete its role", root.role_delete("root").await);
        log.note("revoke its role", root.user_revoke_role("root", "root").await);
        log.note("disable", root.auth_disable().await);
        log.note("anybody", client.user_list().await);
    })
    .await;
}

async fn everything(client: &mut Client, log: &mut Transcript) {
    let all = || Some(GetOptions::new().with_all_keys());
    let prefix = || Some(GetOptions::new().with_prefix());
    log.note("get /a/1", client.get("/a/1", None).await);
    log.note("get /a/", client.get("/a/", prefix()).await);
    log.note("get /b", client.get("/b", None).await);
    log.note("get /b*", client.get("/b", prefix()).await);
    log.note("get /w", client.get("/w", None).await);
    log.note("get all", client.get("", all()).await);
    log.note("get from /a/", client.get("/a/", Some(GetOptions::new().with_from_key())).await);
    log.note("no key", client.get("", None).await);
    log.note("put /a/2", client.put("/a/2", "2", None).await);
    log.note("put /b", client.put("/b", "2", None).await);
    let previous = || Some(PutOptions::new().with_prev_key());
    log.note("put /w", client.put("/w", "2", None).await);
    log.note("put /w, previous", client.put("/w", "2", previous()).await);
    log.note("put /a/2, previous", client.put("/a/2", "3", previous()).await);
    log.note("delete /a/2", client.delete("/a/2", None).await);
    log.note("delete /b", client.delete("/b", None).await);
    let deleted = DeleteOptions::new().with_prev_key();
    log.note("delete /w, previous", client.delete("/w", Some(deleted)).await);
    let every = DeleteOptions::new().with_prefix();
    log.note("delete all", client.delete("/", Some(every)).await);

    let exists = |key: &str| Compare::version(key, CompareOp::Greater, 0);
    let get = |key: &str| TxnOp::get(key, None);
    let put = |key: &str| TxnOp::put(key, "txn", None);
    for (what, txn) in [
        ("allowed", Txn::new().when([exists("/a/1")]).and_then([put("/a/3"), get("/b")])),
        ("compares", Txn::new().when([exists("/c")]).and_then([put("/a/3")])),
        ("reads", Txn::new().and_then([put("/a/3"), get("/c")])),
        ("only reads", Txn::new().and_then([get("/a/1"), get("/b")])),
        ("only reads, one too many", Txn::new().and_then([get("/a/1"), get("/c")])),
        ("the branch not taken", Txn::new().or_else([put("/c")])),
        ("writes", Txn::new().and_then([put("/b")])),
        ("deletes", Txn::new().and_then([TxnOp::delete("/c", None)])),
        ("nested", Txn::new().and_then([TxnOp::txn(Txn::new().and_then([put("/c")]))])),
        ("nested and allowed", Txn::new().and_then([TxnOp::txn(Txn::new().and_then([get("/b")]))])),
    ] {
        log.note(what, client.txn(txn).await);
    }
    for (what, key, options) in [
        ("watch /a/", "/a/", WatchOptions::new().with_prefix()),
        ("watch /b", "/b", WatchOptions::new()),
        ("watch /c", "/c", WatchOptions::new()),
        ("watch /*", "/", WatchOptions::new().with_prefix()),
    ] {
        match client.watch(key, Some(options)).await {
            Ok(mut stream) => {
                let first = message(&mut stream).await;
                let said = (first.created(), first.canceled(), first.cancel_reason().to_owned());
                log.say(what, &format!("{said:?}"));
            }
            Err(error) => log.note::<()>(what, Err(error)),
        }
    }
}

#[tokio::test]
async fn each_user_may_what_its_roles_say() {
    compare_backends(async |backend, log| {
        let mut client = backend.client().await.unwrap();
        set_up(&mut client).await;
        log.say("who", "nobody");
        everything(&mut client, log).await;
        for (name, password) in [("h1", "pass"), ("guest", "guest"), ("root", "secret")] {
            log.say("who", name);
            let mut client = login(backend, name, password).await.unwrap();
            everything(&mut client, log).await;
        }
    })
    .await;
}

#[tokio::test]
async fn users_manage_nothing_and_see_themselves() {
    compare_backends(async |backend, log| {
        set_up(&mut backend.client().await.unwrap()).await;
        let mut h1 = login(backend, "h1", "pass").await.unwrap();
        let c = &mut h1;
        log.note("own user", c.user_get("h1").await);
        log.note("other user", c.user_get("root").await);
        log.note("own role", c.role_get("host").await);
        log.note("other role", c.role_get("root").await);
        log.note("no role", c.role_get("none").await);
        log.note("users", c.user_list().await);
        log.note("roles", c.role_list().await);
        log.note("add", c.user_add("h2", "x", None).await);
        log.note("delete", c.user_delete("guest").await);
        log.note("password", c.user_change_password("h1", "x").await);
        log.note("grant", c.user_grant_role("h1", "root").await);
        log.note("revoke", c.user_revoke_role("h1", "host").await);
        log.note("add role", c.role_add("x").await);
        log.note("delete role", c.role_delete("host").await);
        let everything = Permission::read_write("").with_all_keys();
        log.note("grant permission", c.role_grant_permission("host", everything).await);
        log.note("revoke permission", c.role_revoke_permission("host", "/b", None).await);
        log.note("enable", c.auth_enable().await);
        log.note("disable", c.auth_disable().await);
        log.note("defragment", c.defragment().await);
        log.note("hash", c.hash_kv(0).await.map(|_| ()));
        log.note("status", c.status().await.map(|_| ()));
        log.note("members", c.member_list().await.map(|m| m.members().len()));
        log.note("compact", c.compact(3, None).await);
    })
    .await;
}

#[tokio::test]
async fn leases_with_the_keys_of_others_are_out_of_reach() {
    compare_backends(async |backend, log| {
        let mut nobody = backend.client().await.unwrap();
        set_up(&mut nobody).await;
        let mut root = login(backend, "root", "secret").await.unwrap();
        let mut h1 = login(backend, "h1", "pass").await.unwrap();
        let id = |id| Some(LeaseGrantOptions::new().with_id(id));
        log.note("nobody grants", nobody.lease_grant(60, id(1)).await);
        log.note("grant", h1.lease_grant(60, id(2)).await);
        log.note("grant", root.lease_grant(60, id(3)).await);
        let on = |id| Some(PutOptions::new().with_lease(id));
        log.note("own key", h1.put("/a/own", "1", on(2)).await);
        log.note("root's key", root.put("/c/root", "1", on(3)).await);
        log.note("a key on root's lease", h1.put("/a/own", "1", on(3)).await);
        let keys = || Some(LeaseTimeToLiveOptions::new().with_keys());
        log.note("own", h1.lease_time_to_live(2, keys()).await.map(|l| l.keys().len()));
        log.note("root's", h1.lease_time_to_live(3, keys()).await.map(|l| l.keys().len()));
        log.note("revoke root's", h1.lease_revoke(3).await);
        log.note("revoke own", h1.lease_revoke(2).await);
        log.note("nobody revokes", nobody.lease_revoke(3).await);
        log.note("all", root.lease_revoke(3).await);
    })
    .await;
}

#[tokio::test]
async fn a_token_ends_with_its_password_and_its_user() {
    compare_backends(async |backend, log| {
        set_up(&mut backend.client().await.unwrap()).await;
        let mut root = login(backend, "root", "secret").await.unwrap();
        let mut h1 = login(backend, "h1", "pass").await.unwrap();
        log.note("before", h1.get("/a/1", None).await);
        root.user_revoke_role("h1", "host").await.unwrap();
        log.note("without role", h1.get("/a/1", None).await);
        root.user_grant_role("h1", "host").await.unwrap();
        log.note("with role", h1.get("/a/1", None).await);
        root.user_change_password("h1", "other").await.unwrap();
        log.note("old token", h1.get("/a/1", None).await);
        log.note("old password", login(backend, "h1", "pass").await.map(|_| ()));
        let mut h1 = login(backend, "h1", "other").await.unwrap();
        log.note("new password", h1.get("/a/1", None).await);
        root.user_delete("h1").await.unwrap();
        log.note("deleted", h1.get("/a/1", None).await);
        root.user_add("h1", "other", None).await.unwrap();
        log.note("another of that name", h1.get("/a/1", None).await);
        log.note("empty password", root.user_change_password("h1", "").await);
        log.note("login with it", login(backend, "h1", "").await.map(|_| ()));
        let none = UserAddOptions::new().with_no_pwd();
        root.user_add("cert", "", Some(none)).await.unwrap();
        log.note("login without password", login(backend, "cert", "").await.map(|_| ()));
        log.note("give it one", root.user_change_password("cert", "x").await);
        root.auth_disable().await.unwrap();
        log.note("off", login(backend, "root", "secret").await.map(|_| ()).or(Ok(())));
    })
    .await;
}
