//! What the help says beyond one line per argument.

pub(super) const ABOUT: &str = "\
Overlay networks for containers on many hosts, switched in user space

One agent per host joins network namespaces (containers, VMs, plain namespaces) into networks: L2
over VXLAN (RFC 7348), interoperable with the Linux kernel's vxlan device. Where everything is comes
from a store that speaks the etcd API: an etcd cluster, or the embedded store of one of the hosts.";

/// The commands by what they are for. A test compares it with the commands that exist.
pub(super) const TOP: &str = "\
{about-with-newline}
{usage-heading} {usage}

Run it:
  agent      Run the switch on this host
  store      Run the embedded store by itself; tokens, export, import, state of a store
  join       Join the embedded store of another host
  demo       Show it all on this machine, with namespaces as hosts

Networks:
  network    Make, list, change and remove networks, and their static VTEPs
  attach     Attach a network namespace to a network
  detach     Detach a network namespace from a network

Look:
  status     Show how the agent is: store, session, offloads, networks, warnings
  hosts      List the hosts and whether they are alive
  endpoints  List the endpoints of all hosts
  fdb        Show where each MAC is
  neighbors  Show which MAC each address has
  routes     Show where each range of addresses is, in networks of packets
  drops      Show what was dropped, why, and what to look at
  stats      Show counters and limits
  gc         Find, and with --apply remove, what no living owner has in the store
  enter      Run a command or a shell in a network's private namespace

  help       Show this, or the help of a command

Options:
{options}{after-help}";

pub(super) const FIRST_STEPS: &str = "\
The first five minutes:
  Everything on this machine, nothing left behind:
      skybridge demo

  Two hosts, 192.0.2.1 and 192.0.2.2, UDP 4789 open between them and TCP 2379 to the first:
      h1# skybridge agent --name h1 --vtep 192.0.2.1 --embedded-store 192.0.2.1:2379
      h1# skybridge store token --host h2
      h2# skybridge join TOKEN --name h2
      h2# skybridge agent --vtep 192.0.2.2

  A network, and a namespace on each host in it:
      h1# skybridge network create blue --subnet 198.51.100.0/24
      h1# ip netns add c1 && skybridge attach blue --netns c1
      h2# ip netns add c2 && skybridge attach blue --netns c2
      h2# ip netns exec c2 ping 198.51.100.2

  Does it work, and why not:
      skybridge status
      skybridge drops

Exit codes: 0 ok, 1 failed, 2 wrong usage or configuration.
Every listing takes --json. SKYBRIDGE_SOCKET names the agent's socket, NO_COLOR turns colours off.";

pub(super) const AGENT: &str = "\
Run the switch on this host

The agent takes its configuration from defaults, the file, the environment and the flags, the later
ones winning. --check shows what is in effect. It needs root, a store, and an underlay address that
the other hosts reach; it runs in the foreground and logs to standard error. When it ends, sandboxes
keep their interfaces; the next start takes them over.";

pub(super) const AGENT_EXAMPLES: &str = "\
Examples:
  The first host, with the embedded store and an authority of its own:
      skybridge agent --name h1 --vtep 192.0.2.1 --embedded-store 192.0.2.1:2379
  A further host, once `skybridge join` has been run there:
      skybridge agent --vtep 192.0.2.2
  With an etcd cluster:
      skybridge agent --vtep 192.0.2.2 --store https://192.0.2.9:2379 --tls-ca /etc/skybridge/ca.pem
          --tls-certificate /etc/skybridge/h2.pem --tls-key /etc/skybridge/h2.key
  What would be in effect, and where it comes from:
      skybridge agent --check
  Take everything down that this host's agent ever made:
      skybridge agent --cleanup";

pub(super) const STORE: &str = "\
Run the embedded store by itself; tokens, export, import, compaction and state of a store

An etcd v3 API server on one host, for clusters without etcd. It is not replicated: while its host
is down, networks go on and nothing new can be created. Mostly an agent serves it, with
--embedded-store; then it has an authority of its own and hosts join it with tokens. By itself it
takes certificates that you give it.

The commands below work with either store, embedded or etcd: as the agent on this host reaches it,
or as --store and the flags beside it say.";

pub(super) const STORE_EXAMPLES: &str = "\
Examples:
      skybridge store
      skybridge store --listen 192.0.2.1:2379 --data /srv/skybridge --tls-certificate /srv/h1.pem
          --tls-key /srv/h1.key --tls-client-ca /srv/ca.pem";

pub(super) const TOKEN: &str = "\
Print a token by which one host joins the store that this host's agent serves

The token carries where the store is, how to recognise it, and a secret. It lets in one host, once,
until it ends. Whoever has it can join: treat it as a password. The host gets a certificate and may
then read and write all records of Skybridge, and nothing else in the store.";

pub(super) const TOKEN_EXAMPLES: &str = "\
Examples:
      h1# skybridge store token --host h2
      h2# skybridge join TOKEN --name h2
  In one line:
      h1# skybridge store token --host h2 | ssh h2 skybridge join - --name h2
  Take the host out again:
      h1# cd /var/lib/skybridge/pki && etcdctl --endpoints https://192.0.2.1:2379
          --cacert ca.pem --cert root.pem --key root.pem user delete h2";

pub(super) const STORE_STATUS: &str = "\
Show the members of the store

Each member is asked by itself. SIZE above IN USE is given back by `skybridge store compact
--defragment`. The exit code is 1 when one does not answer.";

pub(super) const STORE_STATUS_EXAMPLES: &str = "\
Examples:
      skybridge store status
      skybridge store status --store https://192.0.2.9:2379 --tls-ca /etc/skybridge/ca.pem --json";

pub(super) const EXPORT: &str = "\
Write all records of the store to a file

Lines of JSON, one per key, as the store is at one revision; the agents go on meanwhile. What is no
text is in base64. `skybridge store import` reads it, also into a store of the other kind.";

pub(super) const EXPORT_EXAMPLES: &str = "\
Examples:
      skybridge store export --output skybridge.jsonl
  What networks there are:
      skybridge store export | jq -r 'select(.key // \"\" | contains(\"/names/\")) | .key'
  From the files of a host whose agent does not run:
      skybridge store export --data /var/lib/skybridge/store --output skybridge.jsonl";

pub(super) const IMPORT: &str = "\
Put the records of an export into a store

First it looks. A key that is there with another value refuses the whole import, unless --overwrite
says otherwise; one that is there with the same value is left alone, so an import that broke off can
be run again. Keys that stood under a lease are left out: the hosts publish those themselves. Stop
the agents of that store before.";

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
      skybridge store import skybridge.jsonl --dry-run
  From the embedded store to etcd:
      skybridge store import skybridge.jsonl --store https://192.0.2.9:2379
          --tls-ca /etc/skybridge/ca.pem --store-user root --store-password-file /root/password";

pub(super) const COMPACT: &str = "\
Forget the store's history

The records stay; what they were before goes. The embedded store does so by itself, etcd when it is
told, or with its --auto-compaction-retention. Needs the rights of an administrator where the store
has users.";

pub(super) const COMPACT_EXAMPLES: &str = "\
Examples:
      skybridge store compact
      skybridge store compact --keep 0 --defragment";

pub(super) const JOIN: &str = "\
Join the embedded store of another host

Connects to the store that the token names, makes sure that it is the one, and gets a certificate
for this host. The certificate, the store's authority and its address are kept in the state
directory; `skybridge agent` finds them there and needs no --store. The agent renews the
certificate by itself.";

pub(super) const JOIN_EXAMPLES: &str = "\
Examples:
      h2# skybridge join TOKEN
      h1# skybridge store token | ssh h2 skybridge join -
      h2# skybridge join TOKEN --name h2 --state-dir /srv/skybridge
      h2# skybridge agent --vtep 192.0.2.2";

pub(super) const NETWORK: &str = "\
Make, list, change and remove networks

A network has subnets and an MTU, and is known to all hosts: an L2 segment with a VNI (mode vxlan),
or routes without one (modes ipip and ipudp). A host sets up its part when the first endpoint is
attached there.";

pub(super) const NETWORK_EXAMPLES: &str = "\
Examples:
      skybridge network create blue --subnet 198.51.100.0/24 --subnet 2001:db8:51::/64
      skybridge network create red --subnet 203.0.113.0/24 --mode ipudp
      skybridge network ls
      skybridge network inspect blue
      skybridge network rm blue";

pub(super) const CREATE: &str = "\
Make a network

The name, the VNI and the subnets are taken in one transaction of the store; when it returns, every
host can attach to the network.

Options (--option KEY=VALUE), each with its default:
  broadcast=true       broadcast and multicast cross hosts; false with compat=swarm
  compat=none          swarm: behave like Docker Swarm's overlay (outer DF clear, no broadcast,
                       nothing learned, MTU 1450)
  learning=false       learn MACs from received frames; true where the network has static VTEPs
  flood_unknown=false  send frames for unknown MACs to every VTEP; true where the network learns
  nat_outgoing=false   endpoints reach the world, masqueraded; needs a gateway
  host_access=false    endpoints reach their host, hosts reach endpoints; true with nat_outgoing
  source_check=mac     what a received source is checked for: mac, mac+ip, or strict (known MACs only)

A gateway is the network's router: every host answers for it to its own endpoints, with one MAC, and
`attach --default-route` routes through it. Where a static VTEP has that address (`network vtep add
--mac MAC=IP`), the router there is the gateway, and hosts answer for nothing.

Networks with nat_outgoing or host_access have routes in their hosts, so their subnets must not
overlap with those of another such network. Any others may.";

pub(super) const CREATE_EXAMPLES: &str = "\
Examples:
      skybridge network create blue --subnet 198.51.100.0/24
  Both families, a VNI of your own, a gateway, and a way to the world:
      skybridge network create green --subnet 203.0.113.0/24 --subnet 2001:db8:53::/64 --vni 5001
          --gateway 203.0.113.1 --gateway 2001:db8:53::1 --nat-outgoing
  Only known MACs may send:
      skybridge network create red --subnet 198.51.100.0/24 --option source_check=strict
  As Docker Swarm's overlay, which gives out the lower half of the addresses:
      skybridge network create swarm --subnet 198.51.100.0/24 --exclude 198.51.100.0/25
          --vni 4097 --udp-port 4789 --option compat=swarm";

pub(super) const NETWORK_LS_EXAMPLES: &str = "\
Examples:
      skybridge network ls
      skybridge network ls --json | jq -r '.[] | [.name, .vni] | @tsv'";

pub(super) const INSPECT_EXAMPLES: &str = "\
Example:
      skybridge network inspect blue";

pub(super) const UPDATE: &str = "\
Change a network

Name, mode, VNI and subnets stay for the life of a network. Everything else can change while it
carries traffic.";

pub(super) const UPDATE_EXAMPLES: &str = "\
Examples:
      skybridge network update blue --mtu 1400
      skybridge network update blue --option source_check=strict --label team=web
  The world, but not the host; and no more:
      skybridge network update blue --nat-outgoing --option host_access=false
      skybridge network update blue --nat-outgoing=false
  Back to the option's default, and no label:
      skybridge network update blue --option source_check --label team";

pub(super) const RM_EXAMPLES: &str = "\
Example:
      skybridge network rm blue";

pub(super) const VTEP: &str = "\
Static VTEPs: kernel vxlan devices, OVS, hardware

A VTEP that runs no Skybridge is not in the store by itself. Tell the network its underlay address,
and, where known, the MACs and addresses behind it.";

pub(super) const VTEP_EXAMPLES: &str = "\
Examples:
      skybridge network vtep add blue 192.0.2.9
      skybridge network vtep ls blue
      skybridge network vtep rm blue 192.0.2.9
  Docker Swarm's overlay on this host, both ways:
      skybridge network vtep import blue --netns '/run/docker/netns/*-k3xf9w2m1q'
      skybridge network vtep export blue --netns '/run/docker/netns/*-k3xf9w2m1q' --watch";

pub(super) const VTEP_ADD: &str = "\
Add a static VTEP, or replace what is known of it

Without --mac, what is behind it is learned from its frames, and broadcasts go to it.";

pub(super) const VTEP_ADD_EXAMPLES: &str = "\
Examples:
      skybridge network vtep add blue 192.0.2.9
      skybridge network vtep add blue 192.0.2.9 --port 8472
          --mac 00:00:5e:00:53:09=198.51.100.9,2001:db8:51::9
  The other end, on Linux:
      ip link add vx0 type vxlan id VNI dstport 4789 local 192.0.2.9 remote 192.0.2.1";

pub(super) const VTEP_EXPORT: &str = "\
Print our endpoints as entries of a kernel vxlan device, or enter them into one

A vxlan device that floods nothing, such as the one of Docker Swarm's overlay, sends only to
what it has entries of: MAC to VTEP in its forwarding database, address to MAC among its
neighbors. Without --apply and --watch the entries of all endpoints of the network are printed
as commands of iproute2.

--apply has the agent enter them; --watch has it keep them true, while endpoints come and go,
the sandbox is made anew, and the agent starts again. Entries of others are left alone: ours are
permanent and marked, forwarding entries with extern_learn, neighbors with protocol 91. The
device must have the network's VNI and UDP port.";

pub(super) const VTEP_EXPORT_EXAMPLES: &str = "\
Examples:
      skybridge network vtep export blue
      skybridge network vtep export blue --netns vx-host --dev vx0 --apply
  Docker's sandboxes have a number in front that changes; the * stands for it:
      skybridge network vtep export blue --netns '/run/docker/netns/*-k3xf9w2m1q' --watch
      skybridge network vtep export blue --stop";

pub(super) const VTEP_IMPORT: &str = "\
Take the entries of a kernel vxlan device as static endpoints, and follow them

Reads the permanent forwarding and neighbor entries of the device: who is behind which VTEP.
Where the device is a port of a bridge, as in Docker's sandboxes, the containers on its own side
are found too, by the namespaces in the folder of --netns, and told with --vtep as where they
are. All of it goes to the network's record, so that every host knows it, and follows the device
until --stop, also when the agent starts again. A device that is gone is waited for; what it
knew of others is kept.

Import on every host that has such a device. What several of them say stays until the last one
no longer does; where they differ, the newer word counts. An address that an endpoint of ours
has is left out.";

pub(super) const VTEP_IMPORT_EXAMPLES: &str = "\
Examples:
      skybridge network vtep import blue --netns '/run/docker/netns/*-k3xf9w2m1q'
      skybridge network vtep import blue --netns vx-host --dev vx0 --vtep 192.0.2.9
      skybridge network vtep import blue --stop
  A host that imported is gone for good:
      skybridge network vtep import blue --stop --host h4";

pub(super) const VTEP_RM_EXAMPLES: &str = "\
Example:
      skybridge network vtep rm blue 192.0.2.9";

pub(super) const VTEP_LS_EXAMPLES: &str = "\
Example:
      skybridge network vtep ls blue";

pub(super) const ATTACH: &str = "\
Attach a network namespace to a network

Makes an interface in the namespace with free addresses of the network (or those asked for) and
publishes it: when the command returns, it is up here, and other hosts know it within moments. While
the store is away it takes addresses that this host has reserved, and other hosts know it later.";

pub(super) const ATTACH_EXAMPLES: &str = "\
Examples:
  A namespace of `ip netns`:
      ip netns add c1 && skybridge attach blue --netns c1
  A running process, with an address of its own choice:
      skybridge attach blue --netns 4711 --ip 198.51.100.7 --ifname eth1 --name web
  With its default route through the network's gateway (see `network create --gateway`):
      skybridge attach blue --netns c1 --default-route
  In the place of an endpoint that another host has, with its MAC, addresses and name:
      skybridge attach blue --netns c1 --move web
  A Docker container that was started with --network none:
      skybridge attach blue --netns $(docker inspect -f '{{.State.Pid}}' web)";

pub(super) const DETACH: &str = "\
Detach a network namespace from a network

Removes the interface and withdraws the endpoint. It works on the endpoint's own host, also when the
namespace is gone; while the store is away it is done here and published later.";

pub(super) const DETACH_EXAMPLES: &str = "\
Examples:
      skybridge detach blue --netns c1
      skybridge detach --id 3f9c2a71b0d84e55";

pub(super) const STATUS: &str = "\
Show how the agent is: store, session, offloads, networks, warnings

The first command to run. Each warning says since when, and what to do.";

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
      skybridge status
      skybridge status --json | jq -e .ready";

pub(super) const HOSTS: &str = "\
List the hosts and whether they are alive

A host whose lease has ended is suspect: its endpoints stay reachable, and lose to a newer claim of
the same MAC or address. Where packets may take several ways to a host, the way in use is shown,
with how each is doing.";

pub(super) const HOSTS_EXAMPLES: &str = "\
Example:
      skybridge hosts";

pub(super) const ENDPOINTS: &str = "\
List the endpoints of all hosts

An endpoint is one attachment of a namespace to a network: a MAC and addresses.";

pub(super) const ENDPOINTS_EXAMPLES: &str = "\
Examples:
      skybridge endpoints
      skybridge endpoints blue --json";

pub(super) const FDB: &str = "\
Show where each MAC is

The table by which frames are sent: on this host, or behind which VTEP, who says so (static, a store
revision, learned) and for how long.";

pub(super) const FDB_EXAMPLES: &str = "\
Examples:
      skybridge fdb
      skybridge fdb blue --json | jq '.[] | select(.source == \"learned\")'";

pub(super) const NEIGHBORS: &str = "\
Show which MAC each address has

The table by which ARP and IPv6 neighbor discovery are answered on this host.";

pub(super) const NEIGHBORS_EXAMPLES: &str = "\
Example:
      skybridge neighbors blue";

pub(super) const ROUTES: &str = "\
Show where each range of addresses is, in networks of packets

The table by which networks of mode ipip and ipudp send: the blocks of hosts, and single addresses
that are elsewhere than their block. The longest range that holds an address has it.";

pub(super) const ROUTES_EXAMPLES: &str = "\
Example:
      skybridge routes blue";

pub(super) const DROPS: &str = "\
Show what was dropped, why, and what to look at

Every frame that does not go on has a reason, and every reason a counter.";

pub(super) const DROPS_EXAMPLES: &str = "\
Examples:
      skybridge drops
      skybridge drops --all";

pub(super) const STATS: &str = "\
Show counters and limits

Counters run since the agent started, those of a network also while it is not here. Limits are of
queues and tables: how much is in use and was at most. With --watch, what happened per second since
the last look.";

pub(super) const STATS_EXAMPLES: &str = "\
Examples:
      skybridge stats
      skybridge stats --workers
      skybridge stats --watch --interval 5
  One JSON object per look:
      skybridge stats --watch --json";

pub(super) const GC: &str = "\
Find, and with --apply remove, what no living owner has in the store

Endpoints, addresses and blocks of hosts that have been absent for longer than
session.garbage_after; addresses and MACs without endpoint; names, VNIs and addresses of networks
whose record is gone. One agent collects by itself; this shows what it would do, each with its
reason, and does it at once. Every removal compares in the store that its reason still holds.";

pub(super) const GC_EXAMPLES: &str = "\
Examples:
  What would be removed, and why:
      skybridge gc
  A host that will not come back:
      skybridge gc --host h3
      skybridge gc --host h3 --apply";

pub(super) const ENTER: &str = "\
Run a command or a shell in a network's private namespace

The bridge, the switch's port and the host ends of the endpoints' interfaces are there. Needs root.";

pub(super) const ENTER_EXAMPLES: &str = "\
Examples:
      skybridge enter blue
      skybridge enter blue bridge fdb show
      skybridge enter blue tcpdump -ni any arp";

pub(super) const DEMO: &str = "\
Show it all on this machine, with namespaces as hosts

Makes hosts out of network namespaces with an agent on each, a network and containers, pings, moves
bytes and compares them, shows the listings and the throughput beside the raw underlay and the
kernel's vxlan device, and takes everything down again. Needs root.";

pub(super) const DEMO_EXAMPLES: &str = "\
Examples:
      skybridge demo
      skybridge demo --hosts 5 --keep --seconds 0";
