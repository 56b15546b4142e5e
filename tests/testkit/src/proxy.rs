//! A slow wire before a store: a TCP relay that delays, holds and cuts.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use crate::lab::lock;
use crate::netns::Netns;

/// What waits in one direction of one connection at most, in pieces of up to 16 KiB.
const PIECES: usize = 256;

#[derive(Debug, Default)]
struct State {
    delay: Duration,
    held: bool,
    ended: bool,
    open: Vec<TcpStream>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A relay in a namespace. Whoever connects to it is connected to the target; what passes is
/// delayed in both directions. It ends with its value.
#[derive(Debug)]
pub struct Proxy {
    listen: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens at `listen` in `netns` and relays to `target` from there.
    ///
    /// # Panics
    ///
    /// If it cannot listen.
    #[track_caller]
    #[must_use]
    pub fn start(netns: &Netns, listen: SocketAddr, target: SocketAddr) -> Self {
        let listener = netns.enter(|| TcpListener::bind(listen)).expect("the address is free");
        let shared = Arc::new(Shared::default());
        let (path, state) = (netns.path(), Arc::clone(&shared));
        // The connections onward are made by threads of this one, so they are made in there too.
        thread::spawn(move || {
            let entered = File::open(path).map(|file| setns(file, CloneFlags::CLONE_NEWNET));
            assert!(matches!(entered, Ok(Ok(()))), "{entered:?}");
            for client in listener.incoming() {
                if lock(&state.state).ended {
                    return;
                }
                let (Ok(client), shared) = (client, Arc::clone(&state)) else { continue };
                thread::spawn(move || {
                    if let Ok(server) = TcpStream::connect_timeout(&target, Duration::from_secs(5))
                    {
                        relay(&shared, client, server);
                    }
                });
            }
        });
        let proxy = Self { listen, shared };
        assert_eq!(proxy.address(), listen);
        proxy
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// What passes from now on comes so much later, in each direction.
    pub fn delay(&self, delay: Duration) {
        lock(&self.shared.state).delay = delay;
    }

    /// Nothing passes until it is let go; connections stay open and new ones are taken.
    pub fn hold(&self, held: bool) {
        lock(&self.shared.state).held = held;
        self.shared.changed.notify_all();
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        for stream in lock(&self.shared.state).open.drain(..) {
            let _: std::io::Result<()> = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.shared.state).ended = true;
        self.hold(false);
        self.cut();
    }
}

fn relay(shared: &Arc<Shared>, client: TcpStream, server: TcpStream) {
    let both = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
    for (from, to) in both {
        let (Ok(from), Ok(to)) = (from, to) else { return };
        let _: std::io::Result<()> = to.set_nodelay(true);
        if let Ok(open) = from.try_clone() {
            lock(&shared.state).open.push(open);
        }
        let (pieces, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(PIECES);
        let reader = Arc::clone(shared);
        thread::spawn(move || read(&reader, from, &pieces));
        let writer = Arc::clone(shared);
        thread::spawn(move || write(&writer, to, &due));
    }
}

fn read(shared: &Shared, mut from: TcpStream, pieces: &mpsc::SyncSender<(Instant, Vec<u8>)>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(len @ 1..) = from.read(&mut bytes) {
        let due = Instant::now() + lock(&shared.state).delay;
        if pieces.send((due, bytes[..len].to_vec())).is_err() {
            return;
        }
    }
}

fn write(shared: &Shared, mut to: TcpStream, due: &mpsc::Receiver<(Instant, Vec<u8>)>) {
    while let Ok((at, bytes)) = due.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let mut state = lock(&shared.state);
        while state.held && !state.ended {
            state = shared.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        drop(state);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _: std::io::Result<()> = to.shutdown(Shutdown::Both);
}
