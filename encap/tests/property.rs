//! Properties: no bytes make anything panic, and coalescing undoes segmentation.

mod support;

use encap::{Link, MacAddr, tcp};
use proptest::collection::vec;
use proptest::prelude::*;
use support::{
    Arrival, Spec, cut, cut_packet, invariant, payload, receive, receive_frames, receive_on,
    unlinked,
};

fn spec() -> impl Strategy<Value = Spec> {
    let network = (any::<bool>(), any::<bool>(), 0..3_usize, any::<u8>(), any::<u8>());
    let transport = (any::<u32>(), any::<u32>(), any::<u16>(), 0..=10_usize, any::<bool>());
    let rest = (any::<bool>(), any::<u16>(), 1..20_000_usize, any::<u32>());
    (network, transport, rest).prop_map(|(network, transport, rest)| {
        let (v6, udp, tags, tos, ttl) = network;
        let (sequence, acknowledgement, window, options, push) = transport;
        let (dont_fragment, ident, len, seed) = rest;
        Spec {
            v6,
            udp,
            tags,
            tos,
            ttl,
            dont_fragment,
            ident,
            sequence,
            acknowledgement,
            flags: if push { tcp::ACK | tcp::PSH } else { tcp::ACK },
            window,
            options: payload(options * 4, seed),
            payload: payload(len, seed),
            ..Spec::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..400)) {
        invariant::vxlan_train(&bytes);
        invariant::frame(&bytes);
        invariant::arp_ndp(&bytes);
        invariant::vnet_segment(&bytes);
        invariant::coalesce(&bytes);
        invariant::packet(&bytes);
    }

    #[test]
    fn any_payload_behind_known_types_is_taken(
        ether_type in prop_oneof![
            Just(0x0800_u16), Just(0x86dd), Just(0x0806), Just(0x8100), Just(0x88a8),
        ],
        first in prop_oneof![Just(0x45_u8), Just(0x46), Just(0x4f), Just(0x60), any::<u8>()],
        bytes in vec(any::<u8>(), 0..200),
    ) {
        let mut frame = vec![2; 12];
        frame.extend(ether_type.to_be_bytes());
        frame.push(first);
        frame.extend(bytes);
        invariant::frame(&frame);
        invariant::arp_ndp(&frame);
        invariant::packet(&frame[14..]);
        let mut train = vec![0, 90, 8, 0, 0, 0, 0, 0, 1, 0];
        train.extend(&frame);
        invariant::vxlan_train(&train);
        let mut batch = vec![5, 0xaa];
        batch.extend((frame.len() as u16).to_be_bytes());
        batch.extend([1, 0]);
        batch.extend(&frame);
        invariant::coalesce(&batch);
    }

    /// A packet without a link layer is cut and joined as the one in a frame.
    #[test]
    fn packets_are_what_frames_are(spec in spec(), size in 1..1500_u16, mtu in 576..1500_u16) {
        let size = size.max((spec.payload.len() as u16).div_ceil(64));
        let spec = Spec { tags: 0, ..spec };
        let (vnet, super_frame) = (spec.vnet(size), spec.partial());
        let frames = cut(&vnet, &super_frame, usize::MAX);
        let packets = cut_packet(&vnet, (&super_frame, 14), usize::MAX);
        let stripped: Vec<Vec<u8>> = frames.iter().map(|frame| frame[14..].to_vec()).collect();
        prop_assert_eq!(&packets, &stripped);
        let arrivals = |frames: Vec<Vec<u8>>| -> Vec<Arrival> {
            frames.into_iter().map(Arrival::from).collect()
        };
        let (seen, framed) = receive(&arrivals(frames), mtu);
        let (same, packed) = receive_on(Link::None, &arrivals(packets), mtu);
        prop_assert_eq!(seen, same);
        prop_assert_eq!(framed.len(), packed.len());
        for (frame, packet) in framed.iter().zip(&packed) {
            prop_assert_eq!(&frame.frame[14..], &packet.frame[..]);
            prop_assert_eq!(unlinked(&frame.vnet, 14), packet.vnet);
        }
    }

    #[test]
    fn segment_then_coalesce_is_identity(spec in spec(), size in 1..1500_u16) {
        // Not more segments than one super-frame takes.
        let size = size.max((spec.payload.len() as u16).div_ceil(64));
        let super_frame = spec.partial();
        let frames = cut(&spec.vnet(size), &super_frame, usize::MAX);
        for frame in &frames {
            prop_assert!(frame.len() <= spec.header_len() + usize::from(size));
        }
        let (_, written) = receive_frames(&frames, 9000);
        prop_assert_eq!(written.len(), 1);
        if frames.len() == 1 {
            prop_assert_eq!(&written[0].frame, &spec.wire());
        } else {
            prop_assert_eq!(written[0].vnet, spec.vnet(size));
            prop_assert_eq!(&written[0].frame, &super_frame);
        }
    }

    #[test]
    fn interleaved_flows_are_identities_too(specs in vec(spec(), 2..6), size in 400..1500_u16) {
        let mut queues: Vec<_> = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| {
                let size = size.max((spec.payload.len() as u16).div_ceil(64));
                let spec = Spec { source_port: 1000 + i as u16, ..spec.clone() };
                let frames = cut(&spec.vnet(size), &spec.partial(), usize::MAX);
                (i as u32, spec, size, frames.into_iter())
            })
            .collect();
        let mut arrivals = Vec::new();
        loop {
            let before = arrivals.len();
            for (tag, _, _, frames) in &mut queues {
                arrivals.extend(frames.next().map(|frame| Arrival { frame, tag: *tag, gso_size: 0 }));
            }
            if arrivals.len() == before {
                break;
            }
        }
        let (_, written) = receive(&arrivals, 9000);
        prop_assert_eq!(written.len(), specs.len());
        for (tag, spec, size, _) in queues {
            let write = written.iter().find(|write| write.tag == tag).unwrap();
            if spec.payload.len() > usize::from(size) {
                prop_assert_eq!(&write.frame, &spec.partial());
            } else {
                prop_assert_eq!(&write.frame, &spec.wire());
            }
        }
    }

    #[test]
    fn mac_addresses_survive_text(bytes in any::<[u8; 6]>()) {
        let mac = MacAddr(bytes);
        prop_assert_eq!(mac.to_string().parse::<MacAddr>(), Ok(mac));
    }
}
