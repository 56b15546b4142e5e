//! Our views and builders beside etherparse's.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

mod support;

use encap::{arp, checksum, ethernet, icmpv4, icmpv6, ipv4, ipv6, ndp, tcp, udp, vlan};
use etherparse::{
    ArpPacketSlice, Ethernet2HeaderSlice, Icmpv4Slice, Icmpv6Slice, IpNumber, Ipv4HeaderSlice,
    Ipv6ExtensionsSlice, Ipv6HeaderSlice, PacketBuilder, SlicedPacket, TcpHeaderSlice, TcpSlice,
    TransportSlice, UdpHeaderSlice, UdpSlice, VlanId,
};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{MAC_A, MAC_B, Spec, cut, payload, receive_frames};

/// The transport's checksum field and what etherparse computes for it.
fn checksums(frame: &[u8]) -> (u16, u16) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let net = sliced.net.unwrap();
    let v4 = net.ipv4_ref().map(|v4| {
        let header = v4.header();
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
        (header.source(), header.destination())
    });
    let v6 = net.ipv6_ref().map(|v6| (v6.header().source(), v6.header().destination()));
    match (sliced.transport.unwrap(), v4, v6) {
        (TransportSlice::Tcp(tcp), Some((from, to)), _) => {
            (tcp.checksum(), tcp.calc_checksum_ipv4(from, to).unwrap())
        }
        (TransportSlice::Tcp(tcp), _, Some((from, to))) => {
            (tcp.checksum(), tcp.calc_checksum_ipv6(from, to).unwrap())
        }
        (TransportSlice::Udp(udp), Some((from, to)), _) => {
            let computed = udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload());
            (udp.checksum(), computed.unwrap())
        }
        (TransportSlice::Udp(udp), _, Some((from, to))) => {
            let computed = udp.to_header().calc_checksum_ipv6_raw(from, to, udp.payload());
            (udp.checksum(), computed.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

/// A frame by etherparse's builder with the addresses and ports of [`Spec`].
fn built(spec: &Spec) -> Vec<u8> {
    let link = PacketBuilder::ethernet2(MAC_A.0, MAC_B.0);
    let tag = VlanId::try_new(42).unwrap();
    let v6: [std::net::Ipv6Addr; 2] =
        ["2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap()];
    let [from, to] = v6.map(|address| address.octets());
    let network = match (spec.tags, spec.v6) {
        (0, false) => link.ipv4([192, 0, 2, 1], [192, 0, 2, 2], spec.ttl),
        (0, true) => link.ipv6(from, to, spec.ttl),
        (1, false) => link.single_vlan(tag).ipv4([192, 0, 2, 1], [192, 0, 2, 2], spec.ttl),
        (1, true) => link.single_vlan(tag).ipv6(from, to, spec.ttl),
        (_, false) => link.double_vlan(tag, tag).ipv4([192, 0, 2, 1], [192, 0, 2, 2], spec.ttl),
        (_, true) => link.double_vlan(tag, tag).ipv6(from, to, spec.ttl),
    };
    let mut frame = Vec::new();
    if spec.udp {
        network.udp(spec.source_port, 53).write(&mut frame, &spec.payload).unwrap();
    } else {
        let segment = network.tcp(spec.source_port, 443, spec.sequence, spec.window);
        let segment = segment.ack(spec.acknowledgement).options_raw(&spec.options).unwrap();
        segment.write(&mut frame, &spec.payload).unwrap();
    }
    frame
}

#[test]
fn builders_agree_byte_for_byte() {
    for len in [0, 1, 2, 900, 1397] {
        for spec in Spec::variants(&Spec { ident: 0, ..Spec::tcp(len) }) {
            let (mut ours, mut theirs) = (spec.wire(), built(&spec));
            if spec.v6 {
                // Its builder has no flow label.
                let at = spec.l3();
                ours[at + 1..at + 4].fill(0);
                theirs[at + 1..at + 4].fill(0);
            }
            assert_eq!(ours, theirs, "{spec:?}");
        }
    }
}

#[test]
fn segments_are_right_in_the_eyes_of_another_parser() {
    for spec in Spec::variants(&Spec::tcp(12_345)) {
        for size in [1398, 1001, 77] {
            let frames = cut(&spec.vnet(size), &spec.partial(), 65_535);
            let mut seen = 0;
            for frame in &frames {
                let (field, computed) = checksums(frame);
                assert_eq!(field, computed);
                seen += frame.len() - spec.header_len();
            }
            assert_eq!(seen, spec.payload.len());
        }
    }
}

#[test]
fn super_frames_have_the_headers_another_parser_expects() {
    for spec in Spec::variants(&Spec::tcp(12_345)) {
        let frames = cut(&spec.vnet(1398), &spec.partial(), 65_535);
        let (_, written) = receive_frames(&frames, 1500);
        let mut whole = written[0].frame.clone();
        // The partial sum finished by hand.
        let check = checksum::checksum(&whole[spec.l4()..]);
        whole[spec.check_at()..spec.check_at() + 2].copy_from_slice(&check.to_be_bytes());
        let (field, computed) = checksums(&whole);
        assert_eq!(field, computed);
        let sliced = SlicedPacket::from_ethernet(&whole).unwrap();
        assert_eq!(sliced.vlan_ids().len(), spec.tags);
        assert_eq!(vlan::payload(&whole).unwrap().1, spec.l3());
    }
}

#[test]
fn answers_are_right_in_the_eyes_of_another_parser() {
    let mut out = [0xa5; 1400];
    let asked = Spec::udp(3000).wire();
    let len = icmpv4::fragmentation_needed(&asked, 1450, &mut out).unwrap();
    let sliced = SlicedPacket::from_ethernet(&out[..len]).unwrap();
    let Some(TransportSlice::Icmpv4(message)) = sliced.transport else { panic!("no ICMP") };
    let icmp_type = Icmpv4Slice::from_slice(message.slice()).unwrap().icmp_type();
    let expected =
        etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1450 };
    assert_eq!(icmp_type, etherparse::Icmpv4Type::DestinationUnreachable(expected));
    assert_eq!(message.checksum(), icmp_type.calc_checksum(message.payload()));
}

#[test]
fn neighbor_messages_are_right_in_the_eyes_of_another_parser() {
    let mut out = [0xa5; 1400];
    let asked = Spec { v6: true, ..Spec::udp(3000) }.wire();
    let len = icmpv6::packet_too_big(&asked, 1430, &mut out).unwrap();
    assert_eq!(
        verified_icmpv6(&out[..len]).icmp_type(),
        etherparse::Icmpv6Type::PacketTooBig { mtu: 1430 }
    );

    let len = ndp::announcement("2001:db8::7".parse().unwrap(), MAC_A, &mut out).unwrap();
    assert_eq!(verified_icmpv6(&out[..len]).type_u8(), ndp::ADVERTISEMENT);

    let len = arp::announcement([192, 0, 2, 7].into(), MAC_A, &mut out).unwrap();
    let sliced = SlicedPacket::from_ethernet(&out[..len]).unwrap();
    let net = sliced.net.unwrap();
    let told = net.arp_ref().unwrap().to_packet().try_eth_ipv4().unwrap();
    assert_eq!((told.sender_mac, told.sender_ipv4), (MAC_A.0, [192, 0, 2, 7]));
    assert_eq!(told.target_ipv4, [192, 0, 2, 7]);
}

fn verified_icmpv6(frame: &[u8]) -> Icmpv6Slice<'_> {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let net = sliced.net.unwrap();
    let header = net.ipv6_ref().unwrap().header();
    let Some(TransportSlice::Icmpv6(message)) = sliced.transport else { panic!("no ICMPv6") };
    assert!(message.is_checksum_valid(header.source(), header.destination()));
    message
}

/// A valid header with a few bytes changed, then payload.
fn damaged(header: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((0..header.len(), any::<u8>()), 0..3);
    (changes, 0..80_usize, any::<u32>(), 0..120_usize).prop_map(
        move |(changes, more, seed, keep)| {
            let mut bytes = header.clone();
            for (at, value) in changes {
                bytes[at] = value;
            }
            bytes.extend(payload(more, seed));
            bytes.truncate(keep);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn ethernet_views_agree(bytes in damaged(Spec::tcp(1).wire()[..14].to_vec())) {
        let theirs = Ethernet2HeaderSlice::from_slice(&bytes).ok();
        let ours = ethernet::Frame::parse(&bytes);
        prop_assert_eq!(ours.is_some(), theirs.is_some());
        if let Some((ours, theirs)) = ours.zip(theirs) {
            prop_assert_eq!(ours.destination().0, theirs.destination());
            prop_assert_eq!(ours.source().0, theirs.source());
            prop_assert_eq!(ours.ether_type().0, theirs.ether_type().0);
        }
    }

    #[test]
    fn ipv4_views_agree(bytes in damaged(Spec::tcp(1).wire()[14..34].to_vec())) {
        let theirs = Ipv4HeaderSlice::from_slice(&bytes).ok().filter(|theirs| {
            (theirs.slice().len()..=bytes.len()).contains(&usize::from(theirs.total_len()))
        });
        let ours = ipv4::Packet::parse(&bytes);
        prop_assert_eq!(ours.is_some(), theirs.is_some());
        if let Some((ours, theirs)) = ours.zip(theirs) {
            prop_assert_eq!(ours.header_len(), theirs.slice().len());
            prop_assert_eq!(ours.total_len(), usize::from(theirs.total_len()));
            prop_assert_eq!(ours.tos(), (theirs.dcp().value() << 2) | theirs.ecn().value());
            prop_assert_eq!(ours.ident(), theirs.identification());
            prop_assert_eq!(ours.dont_fragment(), theirs.dont_fragment());
            prop_assert_eq!(ours.more_fragments(), theirs.more_fragments());
            let offset = usize::from(theirs.fragments_offset().value()) * 8;
            prop_assert_eq!(ours.fragment_offset(), offset);
            prop_assert_eq!(ours.is_fragment(), theirs.is_fragmenting_payload());
            prop_assert_eq!(ours.ttl(), theirs.ttl());
            prop_assert_eq!(ours.protocol(), theirs.protocol().0);
            prop_assert_eq!(ours.checksum(), theirs.header_checksum());
            prop_assert_eq!(ours.source(), theirs.source_addr());
            prop_assert_eq!(ours.destination(), theirs.destination_addr());
            if !theirs.is_fragmenting_payload() && bytes[6] & 0x80 == 0 {
                let right = theirs.to_header().calc_header_checksum() == theirs.header_checksum();
                prop_assert_eq!(ours.checksum_verifies(), right);
            }
        }
    }

    #[test]
    fn ipv6_views_agree(
        bytes in damaged(Spec { v6: true, ..Spec::udp(1) }.wire()[14..54].to_vec()),
    ) {
        let theirs = Ipv6HeaderSlice::from_slice(&bytes)
            .ok()
            .filter(|theirs| 40 + usize::from(theirs.payload_length()) <= bytes.len());
        let ours = ipv6::Packet::parse(&bytes);
        prop_assert_eq!(ours.is_some(), theirs.is_some());
        if let Some((ours, theirs)) = ours.zip(theirs) {
            prop_assert_eq!(ours.traffic_class(), theirs.traffic_class());
            prop_assert_eq!(ours.flow_label(), theirs.flow_label().value());
            prop_assert_eq!(ours.payload().len(), usize::from(theirs.payload_length()));
            prop_assert_eq!(ours.next_header(), theirs.next_header().0);
            prop_assert_eq!(ours.hop_limit(), theirs.hop_limit());
            prop_assert_eq!(ours.source(), theirs.source_addr());
            prop_assert_eq!(ours.destination(), theirs.destination_addr());
        }
    }

    #[test]
    fn extension_headers_agree(
        kinds in prop_oneof![
            Just(vec![0_u8]), Just(vec![60]), Just(vec![43]), Just(vec![44]),
            Just(vec![0, 60]), Just(vec![0, 43]), Just(vec![0, 60, 43, 44, 60]),
        ],
        lens in vec(0..3_u8, 5),
        more in 0..20_usize,
    ) {
        let mut payload = Vec::new();
        for (i, kind) in kinds.iter().enumerate() {
            let units = if *kind == 44 { 0 } else { lens[i] };
            payload.extend([kinds.get(i + 1).copied().unwrap_or(6), units]);
            payload.resize(payload.len() + 6 + usize::from(units) * 8, 0);
        }
        let len = payload.len();
        payload.resize(len + more, 0);
        let (theirs, next, rest) =
            Ipv6ExtensionsSlice::from_slice(IpNumber(kinds[0]), &payload).unwrap();
        let header = ipv6::Header {
            traffic_class: 0,
            flow_label: 0,
            next_header: kinds[0],
            hop_limit: 9,
            source: "2001:db8::1".parse().unwrap(),
            destination: "2001:db8::2".parse().unwrap(),
        };
        let mut packet = header.emit(payload.len()).unwrap().to_vec();
        packet.extend(&payload);
        let ours = ipv6::Packet::parse(&packet).unwrap().extensions().unwrap();
        prop_assert_eq!((ours.protocol, ours.len), (next.0, payload.len() - rest.len()));
        // A fragment header of a whole packet fragments nothing, yet it is one.
        prop_assert!(ours.fragment || !theirs.is_fragmenting_payload());
    }

    #[test]
    fn tcp_views_agree(bytes in damaged(Spec::tcp(1).wire()[34..].to_vec())) {
        let theirs = TcpHeaderSlice::from_slice(&bytes).ok();
        let ours = tcp::Segment::parse(&bytes);
        prop_assert_eq!(ours.is_some(), theirs.is_some());
        if let Some((ours, theirs)) = ours.zip(theirs) {
            let whole = TcpSlice::from_slice(&bytes).unwrap();
            prop_assert_eq!(ours.source(), theirs.source_port());
            prop_assert_eq!(ours.destination(), theirs.destination_port());
            prop_assert_eq!(ours.sequence(), theirs.sequence_number());
            prop_assert_eq!(ours.acknowledgement(), theirs.acknowledgment_number());
            prop_assert_eq!(ours.window(), theirs.window_size());
            prop_assert_eq!(ours.checksum(), theirs.checksum());
            prop_assert_eq!(ours.urgent(), theirs.urgent_pointer());
            prop_assert_eq!(ours.options(), theirs.options());
            prop_assert_eq!(ours.payload(), whole.payload());
            let flags = [
                (tcp::FIN, theirs.fin()), (tcp::SYN, theirs.syn()), (tcp::RST, theirs.rst()),
                (tcp::PSH, theirs.psh()), (tcp::ACK, theirs.ack()), (tcp::URG, theirs.urg()),
                (tcp::ECE, theirs.ece()), (tcp::CWR, theirs.cwr()),
            ];
            for (flag, set) in flags {
                prop_assert_eq!(ours.flags() & flag != 0, set);
            }
        }
    }

    #[test]
    fn udp_views_agree(bytes in damaged(Spec::udp(1).wire()[34..].to_vec())) {
        let theirs = UdpHeaderSlice::from_slice(&bytes)
            .ok()
            .filter(|theirs| (8..=bytes.len()).contains(&usize::from(theirs.length())));
        let ours = udp::Datagram::parse(&bytes);
        prop_assert_eq!(ours.is_some(), theirs.is_some());
        if let Some((ours, theirs)) = ours.zip(theirs) {
            prop_assert_eq!(ours.source(), theirs.source_port());
            prop_assert_eq!(ours.destination(), theirs.destination_port());
            prop_assert_eq!(ours.length(), usize::from(theirs.length()));
            prop_assert_eq!(ours.checksum(), theirs.checksum());
            prop_assert_eq!(ours.payload(), UdpSlice::from_slice(&bytes).unwrap().payload());
        }
    }

    #[test]
    fn arp_views_agree(
        bytes in damaged(
            arp::Repr {
                operation: 1,
                sender_mac: MAC_A,
                sender: [192, 0, 2, 1].into(),
                target_mac: MAC_B,
                target: [192, 0, 2, 2].into(),
            }
            .emit()
            .to_vec(),
        ),
    ) {
        let theirs = ArpPacketSlice::from_slice(&bytes)
            .ok()
            .and_then(|theirs| theirs.to_packet().try_eth_ipv4().ok());
        let ours = arp::Packet::parse(&bytes);
        prop_assert_eq!(ours.is_some(), theirs.is_some());
        if let Some((ours, theirs)) = ours.zip(theirs) {
            prop_assert_eq!(ours.operation(), theirs.operation.0);
            prop_assert_eq!(ours.sender_mac().0, theirs.sender_mac);
            prop_assert_eq!(ours.sender().octets(), theirs.sender_ipv4);
            prop_assert_eq!(ours.target_mac().0, theirs.target_mac);
            prop_assert_eq!(ours.target().octets(), theirs.target_ipv4);
        }
    }

    #[test]
    fn sums_agree(bytes in vec(any::<u8>(), 0..3000)) {
        let mut theirs = etherparse::checksum::Sum16BitWords::new();
        theirs = theirs.add_slice(&bytes);
        prop_assert_eq!(checksum::checksum(&bytes), theirs.ones_complement().to_be());
    }
}
