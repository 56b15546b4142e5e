use super::*;
use proptest::prelude::*;

fn text<T: fmt::Debug>(result: Result<T, Invalid>) -> String {
    result.unwrap_err().to_string()
}

fn create(subnets: &[&str]) -> CreateNetwork {
    CreateNetwork {
        name: "blue".to_owned(),
        subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
        ..CreateNetwork::default()
    }
}

#[test]
fn a_subnet_with_host_bits_is_told_the_right_one() {
    assert_eq!(
        text(subnet("198.51.100.7/24")),
        "198.51.100.7/24 has host bits set; write 198.51.100.0/24, the subnet that holds it"
    );
    assert_eq!(
        text(subnet("198.51.100.7")),
        "the prefix length is missing; write it behind a slash, such as 198.51.100.0/24"
    );
    assert!(text(subnet("2001:db8::1/64")).contains("write 2001:db8::/64,"));
}

#[test]
fn subnets_that_no_network_can_have_are_refused() {
    for bad in [
        "198.51.100.0/31",
        "2001:db8::/127",
        "224.0.0.0/8",
        "127.0.0.0/8",
        "0.0.0.0/0",
        "fe80::/64",
        "x",
    ] {
        assert!(subnet(bad).is_err(), "{bad}");
    }
    assert!(subnet("198.51.100.0/30").is_ok());
}

#[test]
fn names_are_letters_digits_and_three_marks() {
    for good in ["a", "blue", "Blue-1_x.y", "0", &"x".repeat(63)] {
        assert!(name(good).is_ok(), "{good}");
    }
    for bad in ["", "-a", ".a", "a b", "a/b", "bl\u{fc}", &"x".repeat(64)] {
        assert!(name(bad).is_err(), "{bad}");
    }
}

#[test]
fn numbers_have_their_ranges() {
    for bad in ["0", "16777216", "-1", "", "4294967297"] {
        assert_eq!(text(vni(bad)), "not a VNI; write a number from 1 to 16777215", "{bad}");
    }
    assert_eq!(vni("16777215"), Ok(16_777_215));
    assert!(mtu("575").is_err() && mtu("65466").is_err() && mtu("576").is_ok());
    let request = CreateNetwork { mtu: Some(1000), ..create(&["2001:db8::/64"]) };
    assert!(request.check().unwrap_err().cause.unwrap().contains("too small for IPv6"));
}

#[test]
fn macs_and_addresses_belong_to_one_host() {
    for bad in ["", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "02:42"] {
        assert!(mac(bad).is_err(), "{bad}");
    }
    assert!(mac("00:00:5e:00:53:01").is_ok());
    assert_eq!(
        text(ip("198.51.100.2/24")),
        "an address goes without prefix length here; write 198.51.100.2"
    );
    for bad in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "::ffff:192.0.2.1", "h1"] {
        assert!(ip(bad).is_err(), "{bad}");
    }
}

#[test]
fn interface_names_are_what_the_kernel_takes() {
    for bad in ["", ".", "..", "lo", "a/b", "a:b", "a b", "0123456789abcdef", "e%d"] {
        assert!(ifname(bad).is_err(), "{bad}");
    }
    assert!(ifname("eth0").is_ok() && ifname("0123456789abcde").is_ok());
}

#[test]
fn sandboxes_are_names_paths_and_processes() {
    assert_eq!(netns("c1"), Ok(Netns::Name("c1".to_owned())));
    assert_eq!(netns("./c1"), Ok(Netns::Path("./c1".into())));
    assert_eq!(netns("17"), Ok(Netns::Pid(17)));
    for bad in ["", "0", ".", "..", "99999999999", "a\0b"] {
        assert!(netns(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_agent_gets_paths_that_mean_the_same_to_it() {
    let own = |text| netns_for_agent(text, Path::new("/home/u"), 42).unwrap();
    assert_eq!(own("c1"), "c1");
    assert_eq!(own("17"), "17");
    assert_eq!(own("./ns/net"), "/home/u/ns/net");
    assert_eq!(own("../ns"), "/home/u/../ns");
    assert_eq!(own("/run/netns/c1"), "/run/netns/c1");
    assert_eq!(own("/proc/self/ns/net"), "/proc/42/ns/net");
    assert_eq!(own("/proc/./thread-self/ns/net"), "/proc/42/ns/net");
}

#[test]
fn requests_are_checked_whole() {
    create(&["198.51.100.0/24", "2001:db8::/64"]).check().unwrap();
    let overlap = create(&["198.51.100.0/24", "198.51.100.128/25"]).check().unwrap_err();
    assert_eq!(overlap.cause.unwrap(), "198.51.100.128/25 and 198.51.100.0/24 share addresses");
    assert!(create(&[]).check().is_err());
    for gateway in ["203.0.113.1", "198.51.100.0", "198.51.100.255"] {
        let gateway = gateway.parse().unwrap();
        let request = CreateNetwork { gateway, ..create(&["198.51.100.0/24"]) };
        assert!(request.check().is_err());
    }
    let gateway = Gateway::Addresses(vec![]);
    assert!(CreateNetwork { gateway, ..create(&["198.51.100.0/24"]) }.check().is_err());
    assert!(UpdateNetwork::default().check().is_err());
    let options = [("local".to_owned(), None)].into();
    UpdateNetwork { options, ..UpdateNetwork::default() }.check().unwrap();
    let relative = Detach {
        network: Some("blue".to_owned()),
        netns: Some("ns/net".to_owned()),
        endpoint: None,
    };
    assert!(relative.check().unwrap_err().cause.unwrap().contains("relative"));
    let both = Detach { endpoint: Some("e1".to_owned()), ..relative };
    assert!(both.check().is_err());
}

proptest! {
    #[test]
    fn no_text_panics(s in "\\PC{0,80}") {
        let _ = (name(&s), subnet(&s), vni(&s), mtu(&s), mac(&s), ip(&s), ifname(&s), pair(&s));
        let _ = netns_for_agent(&s, Path::new("/"), 1);
    }
}
