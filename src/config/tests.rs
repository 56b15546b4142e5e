use super::*;

const STORE: &str = "http://127.0.0.1:2379";

fn with(change: impl FnOnce(&mut Flags)) -> Flags {
    let mut flags = Flags {
        name: Some("h1".to_owned()),
        vtep: vec!["192.0.2.1".to_owned()],
        store: vec![STORE.to_owned()],
        ..Flags::default()
    };
    change(&mut flags);
    flags
}

fn nothing(_: &str) -> Option<String> {
    None
}

/// Resolves with `text` as the file.
fn from(text: &str, flags: &Flags) -> Result<Effective, Error> {
    let file = Some((PathBuf::from("skybridge.toml"), text.to_owned()));
    resolve::resolve(flags, &|_| None, file, Purpose::Run)
}

fn source<'a>(effective: &'a Effective, key: &str) -> &'a Source {
    &effective.settings.iter().find(|setting| setting.key == key).unwrap().source
}

/// The fault's text and next step.
fn fault(result: Result<Effective, Error>) -> String {
    let error = result.unwrap_err();
    format!("{error} / {}", error.next_step())
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let text = "stores = [\"http://localhost:1\"]\nsocket = \"/run/a\"\nudp_port = 8472\n";
    let file = || Some((PathBuf::from("f.toml"), text.to_owned()));
    let environment = |name: &str| match name {
        environment::STORES => Some("http://localhost:2, http://localhost:3".to_owned()),
        environment::SOCKET => Some("/run/b".to_owned()),
        _ => None,
    };
    let bare = with(|flags| flags.store.clear());
    let found = resolve::resolve(&bare, &environment, file(), Purpose::Run).unwrap();
    assert_eq!(found.config.store.endpoints, ["http://localhost:2", "http://localhost:3"]);
    assert_eq!(*source(&found, "stores"), Source::Environment(environment::STORES));
    assert_eq!(found.config.socket, Path::new("/run/b"));
    let line = |line| Source::File { path: "f.toml".into(), line };
    assert_eq!((found.config.udp_port, source(&found, "udp_port")), (8472, &line(3)));
    assert_eq!(*source(&found, "log.level"), Source::Default);

    let flags = with(|flags| flags.socket = Some("/run/c".into()));
    let found = resolve::resolve(&flags, &environment, file(), Purpose::Run).unwrap();
    assert_eq!(found.config.store.endpoints, [STORE]);
    assert_eq!(*source(&found, "stores"), Source::Flag("store"));
    assert_eq!(found.config.socket, Path::new("/run/c"));

    let found = resolve::resolve(&bare, &nothing, file(), Purpose::Run).unwrap();
    assert_eq!(*source(&found, "stores"), line(1));
}

#[test]
fn every_key_has_a_setting_and_every_setting_a_key() {
    let effective = from("", &with(|_| {})).unwrap();
    let settings: Vec<&str> = effective.settings.iter().map(|setting| setting.key).collect();
    let keys: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(settings, keys);
}

#[test]
fn what_check_prints_is_a_file_that_means_the_same() {
    let text = r#"
name = "h1"
vtep = [
  { address = "192.0.2.1", bind = "198.51.100.1", port = 4790, mtu = 9000, accept = ["192.0.2.9"] },
  "2001:db8::1",
]
stores = ["https://192.0.2.1:2379/", "https://[2001:db8::1]"]
store_prefix = "/prod/"
workers = 3
socket_group = "adm"
metrics = "127.0.0.1:9474"
[tls]
ca = "/ca.pem"
certificate = "/h1.pem"
key = "/h1.key"
[user]
name = "h1"
password_file = "/pass \"word\""
[session]
lease = "15s"
[datapath]
disable = ["uso", "tso"]
[log]
level = "skybridge=debug,info"
format = "json"
"#;
    let first = from(text, &Flags::default()).unwrap();
    assert_eq!(first.config.store.prefix, "/prod");
    assert_eq!(
        first.config.store.endpoints,
        ["https://192.0.2.1:2379", "https://[2001:db8::1]:2379"]
    );
    assert_eq!(first.config.vteps[0].bind, IpAddr::from([198, 51, 100, 1]));
    assert_eq!((first.config.vteps[0].port, first.config.vteps[1].port), (4790, 4789));
    assert_eq!(first.config.store.lease, Duration::from_secs(15));
    let second = from(&first.to_string(), &Flags::default()).unwrap();
    assert_eq!(first.config, second.config);
}

#[test]
fn the_example_is_a_file_that_shows_every_key() {
    let text = example();
    from(&text, &with(|_| {})).unwrap();
    for key in KEYS {
        let leaf = key.name.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("\n#{leaf} = {}\n", key.example)), "{}", key.name);
    }
    // Without the comment signs every value is of the right type.
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => rest,
        _ => line,
    });
    let all: String = lines.map(|line| format!("{line}\n")).collect();
    let all = all.replace("insecure_store = false", "insecure_store = true");
    from(&all, &Flags::default()).unwrap();
}

#[test]
fn unknown_keys_are_refused_with_their_line_and_a_likely_one() {
    assert_eq!(
        fault(from("name = \"h1\"\nudp_prt = 1\n", &with(|_| {}))),
        "skybridge.toml, line 2: there is no key `udp_prt` here / did you mean `udp_port`?"
    );
    assert_eq!(
        fault(from("[log]\nlevel = \"info\"\nworkers = 2\n", &with(|_| {}))),
        "skybridge.toml, line 3: there is no key `workers` here / the key is `workers`: mind the \
         table that it is in"
    );
    assert!(fault(from("zzzzzz = 1", &with(|_| {}))).contains("the keys are name, vtep"));
    assert!(
        fault(from("vtep = { address = \"192.0.2.1\", x = 1 }", &with(|_| {}))).contains("`x`")
    );
    assert!(fault(from("[[vtep]]\naddress = 3\n", &with(|_| {}))).contains("line 2"));
    assert!(fault(from("vtep = [[\"192.0.2.1\"]]", &with(|_| {}))).contains("inside a list"));
    assert!(fault(from("name = ", &with(|_| {}))).contains("line 1"));
}

#[test]
fn bad_values_name_key_place_cause_and_next_step() {
    let cases = [
        (
            "udp_port = 70000",
            "`udp_port` (file skybridge.toml, line 1): 70000 is out of range / write a number from 1 to 65535",
        ),
        ("workers = 0", "from 1 to 64"),
        ("name = \"a b\"", "`a b`: not a name"),
        ("vtep = \"192.0.2.1/24\"", "write 192.0.2.1"),
        ("vtep = \"0.0.0.0\"", "unspecified"),
        ("vtep = []", "one VTEP per family"),
        ("vtep = [\"192.0.2.1\", \"192.0.2.2\"]", "one VTEP per family"),
        ("vtep = { address = \"192.0.2.1\", bind = \"2001:db8::1\" }", "another family"),
        ("stores = []", "there are 0 endpoints"),
        ("stores = [\"127.0.0.1:2379\"]", "write http://127.0.0.1:2379"),
        ("stores = [\"http://127.0.0.1:0\"]", "has no port"),
        ("stores = [\"http://u:p@h\"]", "more than host and port"),
        ("stores = [\"http://\"]", "has no host"),
        ("stores = [\"http://[::1\"]", "has no host"),
        ("stores = [\"https://192.0.2.1\"]", "--tls-ca"),
        ("store_prefix = \"a b\"", "no prefix of keys"),
        ("metrics = \"9474\"", "not an address with a port"),
        ("socket = \"\"", "not a path"),
        ("[session]\nlease = \"1s\"", "from 2s to 10m"),
        ("[session]\nlease = \"ten\"", "`ten` is not a duration"),
        ("[datapath]\ndisable = [\"gso\"]", "there is no capability `gso` / the capabilities are"),
        ("[datapath]\nsource_ports = 65", "out of range"),
        ("[datapath]\nnice = -21", "out of range"),
        ("[log]\nformat = \"xml\"", "write text or json"),
        ("[log]\nlevel = \"a=b=c\"", "no filter"),
        ("[tls]\nkey = \"/k\"", "it needs tls.ca"),
        ("[user]\nname = \"u\"", "it needs user.password_file"),
    ];
    for (text, expected) in cases {
        // What the file says must not be hidden by a flag.
        let flags = with(|flags| {
            let key = text.split([' ', '=']).next().unwrap_or_default();
            match key {
                "name" => flags.name = None,
                "vtep" => flags.vtep.clear(),
                "stores" => flags.store.clear(),
                _ => {}
            }
        });
        let said = fault(from(text, &flags));
        assert!(said.contains(expected), "{text}\nsaid     {said}\nexpected {expected}");
    }
    let flags = with(|flags| flags.udp_port = Some(-1));
    assert!(fault(from("", &flags)).starts_with("`udp_port` (flag --udp-port): -1"));
}

#[test]
fn what_must_be_set_is_asked_for() {
    let said = fault(from("", &with(|flags| flags.vtep.clear())));
    assert!(said.starts_with("`vtep` is not set / give the underlay address"), "{said}");
    let said = fault(from("", &with(|flags| flags.store.clear())));
    assert!(said.contains("--embedded-store"), "{said}");
    let bare = Flags { name: Some("h1".to_owned()), ..Flags::default() };
    let cleanup = resolve::resolve(&bare, &nothing, None, Purpose::CleanUp).unwrap();
    assert!(cleanup.config.vteps.is_empty() && cleanup.config.store.endpoints.is_empty());
}

#[test]
fn the_store_in_clear_stays_on_this_machine_unless_told() {
    for far in ["http://192.0.2.1:2379", "http://store.example", "http://[2001:db8::1]:1"] {
        let flags = with(|flags| flags.store = vec![far.to_owned()]);
        assert!(fault(from("", &flags)).contains("--insecure-store"), "{far}");
        let flags = with(|flags| {
            flags.store = vec![far.to_owned()];
            flags.insecure_store = true;
        });
        from("", &flags).unwrap();
        from("insecure_store = true", &flags).unwrap();
    }
    for near in ["http://localhost:1", "http://127.0.0.2", "http://[::1]:1"] {
        from("", &with(|flags| flags.store = vec![near.to_owned()])).unwrap();
    }
}

/// Flags with a state directory of their own.
fn in_state(dir: &tempfile::TempDir, change: impl FnOnce(&mut Flags)) -> Flags {
    with(|flags| {
        flags.store.clear();
        flags.state_dir = Some(dir.path().to_owned());
        change(flags);
    })
}

#[test]
fn the_embedded_store_has_an_authority_where_others_reach_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = membership::pki::Files::of(dir.path());
    let serve = |listen: &str, insecure: bool| {
        in_state(&dir, |flags| {
            flags.embedded_store = Some(listen.to_owned());
            flags.insecure_store = insecure;
        })
    };
    let found = from("", &serve("192.0.2.1:2379", false)).unwrap();
    assert!(found.config.store.authority);
    assert_eq!(found.config.store.endpoints, ["https://192.0.2.1:2379"]);
    let tls = found.config.store.tls.clone().unwrap();
    assert_eq!((tls.ca, tls.identity), (files.ca(), Some((files.host(), files.host()))));
    assert_eq!(*source(&found, "tls.ca"), Source::State(files.authority()));
    let found = from("", &serve("0.0.0.0:2379", false)).unwrap();
    assert_eq!(found.config.store.endpoints, ["https://127.0.0.1:2379"]);
    for (listen, insecure) in [("127.0.0.1:2379", false), ("192.0.2.1:2379", true)] {
        let found = from("", &serve(listen, insecure)).unwrap();
        assert!(!found.config.store.authority && found.config.store.tls.is_none(), "{listen}");
    }
    let text = "tls.ca = \"/elsewhere.pem\"";
    let said = fault(from(text, &serve("192.0.2.1:2379", false)));
    assert!(said.contains("an authority of its own"), "{said}");
    // What --check prints means the same.
    let flags = serve("192.0.2.1:2379", false);
    let printed = from("", &flags).unwrap();
    let bare = Flags::default();
    assert_eq!(from(&printed.to_string(), &bare).unwrap().config, printed.config);
}

#[test]
fn a_joined_host_needs_to_be_told_nothing_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let files = membership::pki::Files::of(dir.path());
    let none = in_state(&dir, |_| {});
    assert!(fault(from("", &none)).contains("skybridge join TOKEN"));
    std::fs::create_dir(files.directory()).unwrap();
    let joined =
        r#"{"version":1,"name":"h1","endpoints":["https://192.0.2.9:2379"],"prefix":"/p"}"#;
    std::fs::write(files.joined(), joined).unwrap();
    let bare = in_state(&dir, |flags| flags.name = None);
    let found = from("", &bare).unwrap();
    assert_eq!((found.config.name.as_str(), found.config.store.prefix.as_str()), ("h1", "/p"));
    assert_eq!(found.config.store.endpoints, ["https://192.0.2.9:2379"]);
    assert_eq!(found.config.store.tls.clone().unwrap().ca, files.ca());
    for key in ["name", "stores", "store_prefix", "tls.key"] {
        assert_eq!(*source(&found, key), Source::State(files.joined()), "{key}");
    }
    assert_eq!(from(&found.to_string(), &Flags::default()).unwrap().config, found.config);
    let other = in_state(&dir, |flags| flags.name = Some("h3".to_owned()));
    let said = fault(from("", &other));
    assert!(said.contains("has joined its store as h1, not as h3"), "{said}");
    // A store that is named wins, and then nothing of the other one counts.
    let elsewhere = in_state(&dir, |flags| {
        flags.name = Some("h3".to_owned());
        flags.store = vec![STORE.to_owned()];
    });
    let found = from("", &elsewhere).unwrap();
    assert_eq!(found.config.store.endpoints, [STORE]);
    assert!(found.config.store.tls.is_none());
    std::fs::write(files.joined(), "junk").unwrap();
    let said = fault(from("", &none));
    assert!(said.contains("joined.json") && said.contains("join anew"), "{said}");
}

#[test]
fn the_embedded_store_is_used_by_its_own_agent() {
    let flags = |listen: &str, store: &[&str]| {
        with(|flags| {
            flags.store = store.iter().map(|url| (*url).to_owned()).collect();
            flags.embedded_store = Some(listen.to_owned());
            flags.insecure_store = true;
        })
    };
    let endpoints = |flags: Flags| from("", &flags).unwrap().config.store.endpoints;
    assert_eq!(endpoints(flags("192.0.2.1:2379", &[])), ["http://192.0.2.1:2379"]);
    assert_eq!(endpoints(flags("0.0.0.0:2380", &[])), ["http://127.0.0.1:2380"]);
    assert_eq!(endpoints(flags("[::]:2380", &[])), ["http://[::1]:2380"]);
    assert_eq!(endpoints(flags("192.0.2.1:2379", &["http://h1:2379"])), ["http://h1:2379"]);
    let other = flags("192.0.2.1:2379", &["http://192.0.2.2:2379"]);
    assert!(fault(from("", &other)).contains("none of the endpoints is the embedded store"));
}

#[test]
fn durations_are_read_back_as_written() {
    for text in ["0s", "1ms", "1500ms", "10s", "5m", "24h", "36h", "90d"] {
        let read = duration(text).unwrap();
        assert_eq!(duration(&duration_text(read)), Some(read), "{text}");
    }
    for bad in ["", "10", "s", "-1s", "1.5s", "1w", "99999999999999999999s", "9999999999999999999d"]
    {
        assert_eq!(duration(bad), None, "{bad}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let flags = with(|flags| flags.config = Some(dir.path().join("no.toml")));
    let said = fault(load(&flags, nothing, Purpose::Run));
    assert!(said.contains("no.toml") && said.contains("--config"), "{said}");
    let path = dir.path().join("yes.toml");
    std::fs::write(&path, "udp_port = 8472\n").unwrap();
    let named =
        |name: &str| (name == environment::CONFIG).then(|| path.to_string_lossy().into_owned());
    let found = load(&with(|_| {}), named, Purpose::Run).unwrap();
    assert_eq!(found.config.udp_port, 8472);
}
