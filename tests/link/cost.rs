//! What the source check costs, by hand.

use std::net::{SocketAddr, UdpSocket};

use skybridge::link::endpoint::Plugged;
use skybridge::link::run_in;
use skybridge::link::source_check;

use super::world::*;

/// Not part of the suite: prints what the source check costs, without and with it in turn, in CPU
/// time, which other work on the machine disturbs less than rates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, run by hand"]
async fn source_check_cost() {
    let mut world = World::new();
    let network = world.network().await;
    let [one, two] = world.pair(&network, false).await;
    let both = [guarded(&one), guarded(&two)];
    exchange(&one, &two, 0).unwrap();
    let mut results: [Vec<f64>; 4] = Default::default();
    for _ in 0..8 {
        for on in [0, 1] {
            if on == 1 {
                source_check::apply(&network, &both).await.unwrap();
            } else {
                source_check::remove(&network).await.unwrap();
            }
            results[on].push(datagram_cost_ns(&one, &two));
            results[2 + on].push(stream_cost(&one, &two));
        }
    }
    for (name, mut values) in ["datagram without", "datagram with", "stream without", "stream with"]
        .into_iter()
        .zip(results)
    {
        values.sort_by(f64::total_cmp);
        println!("{name}: least {:.3}, median {:.3}", values[0], values[values.len() / 2]);
    }
}

/// Nanoseconds that the calling thread has spent on a CPU.
fn cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// CPU nanoseconds per datagram of 64 bytes; the path up to the other socket runs in the sender.
fn datagram_cost_ns(from: &Plugged, to: &Plugged) -> f64 {
    let [client, server] = [from, to].map(|end| {
        let local = SocketAddr::new(ip_of(end, 0), 0);
        run_in(&end.plug.sandbox, || UdpSocket::bind(local)).unwrap().unwrap()
    });
    client.connect(server.local_addr().unwrap()).unwrap();
    let before = cpu_ns();
    const COUNT: u32 = 100_000;
    for _ in 0..COUNT {
        client.send(&[0; 64]).unwrap();
    }
    (cpu_ns() - before) / f64::from(COUNT)
}

/// CPU seconds per gigabyte of TCP, of both ends.
fn stream_cost(from: &Plugged, to: &Plugged) -> f64 {
    use std::io::{Read as _, Write as _};
    let local = SocketAddr::new(ip_of(to, 0), 0);
    let listen = || std::net::TcpListener::bind(local);
    let listener = run_in(&to.plug.sandbox, listen).unwrap().unwrap();
    let target = listener.local_addr().unwrap();
    let connect = || std::net::TcpStream::connect(target);
    let mut client = run_in(&from.plug.sandbox, connect).unwrap().unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let block = vec![0; 1 << 20];
    let reader = std::thread::spawn(move || {
        let before = cpu_ns();
        let mut room = vec![0; 1 << 20];
        while server.read(&mut room).unwrap() > 0 {}
        cpu_ns() - before
    });
    let before = cpu_ns();
    for _ in 0..1000 {
        client.write_all(&block).unwrap();
    }
    let sent = cpu_ns() - before;
    drop(client);
    (sent + reader.join().unwrap()) / 1e9 / 1.048_576
}
