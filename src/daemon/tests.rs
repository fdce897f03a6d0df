//! The whole daemon on real interfaces, in a network namespace that each test makes for itself: what
//! comes over the control socket, what an interface that fails does, how it ends.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

use futures_util::TryStreamExt;
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::*;
use crate::config::command::{Command, Listing};
use crate::config::file::{Cidr, KeepKernelOff, NicKind, PortSpec, Side};
use crate::config::{RealSpec, Refusal, codec};
use crate::lvs::{
    Endpoint, ForwardMethod, RealKey, ServiceKey, ServiceSpec, Thresholds, Tunnel, Weight,
};
use crate::nic::{self, Backend, OpenOptions};
use crate::wire::{FrameView, Mac, Offload};

const VIP: [u8; 4] = [10, 0, 0, 100];
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in a fresh network namespace; says why if there can be none. The namespace goes with
/// its last thread.
fn in_new_network(body: impl FnOnce() + Send + 'static) {
    let number = || std::fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
    let inside = move || {
        let machine = number();
        // SAFETY: no memory is passed; it moves only this thread.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let error = std::io::Error::last_os_error();
            println!("skipped: no network namespace of our own: {error}");
            return;
        }
        assert_ne!(number(), machine, "still in the machine's own network");
        body();
    };
    std::thread::spawn(inside)
        .join()
        .expect("the test panicked, see above");
}

/// Changes links, in the namespace of this thread.
fn with_links<T>(work: impl AsyncFnOnce(rtnetlink::Handle) -> Result<T, rtnetlink::Error>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        work(handle).await.unwrap()
    })
}

async fn index(handle: &rtnetlink::Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = handle.link().get().match_name(name).execute();
    Ok(links.try_next().await?.expect("a link").header.index)
}

fn add_veth(ours: &'static str, theirs: &'static str) {
    with_links(async |handle| {
        handle
            .link()
            .add(LinkVeth::new(ours, theirs).build())
            .execute()
            .await?;
        for name in [ours, theirs] {
            let index = index(&handle, name).await?;
            let up = LinkUnspec::new_with_index(index).up().build();
            handle.link().set(up).execute().await?;
        }
        Ok(())
    });
}

fn set_up(name: &'static str, up: bool) {
    with_links(async |handle| {
        let link = LinkUnspec::new_with_index(index(&handle, name).await?);
        let link = if up { link.up() } else { link.down() };
        handle.link().set(link.build()).execute().await
    });
}

fn delete(name: &'static str) {
    with_links(async |handle| {
        let index = index(&handle, name).await?;
        handle.link().del(index).execute().await
    });
}

/// A director between `eth0` and `eth1`, whose far ends are `out0` and `out1`.
fn config() -> Config {
    let port = |name: &str, side, address: [u8; 4]| PortSpec {
        addresses: vec![Cidr {
            address: IpAddr::from(address),
            prefix: 24,
        }],
        ..PortSpec::new(name, side)
    };
    let mut config = Config {
        ports: vec![
            port("eth0", Side::Public, [10, 0, 0, 1]),
            port("eth1", Side::Private, [192, 168, 1, 254]),
        ],
        services: vec![
            Command::AddService(ServiceSpec::new(web(), "rr")),
            add_real([192, 168, 1, 11]),
        ],
        ..Config::default()
    };
    config.director.nic = NicKind::Mmsg;
    config
}

fn web() -> ServiceKey {
    ServiceKey::tcp(IpAddr::from(VIP), 80)
}

fn add_real(address: [u8; 4]) -> Command {
    let real = RealSpec {
        key: RealKey(Endpoint::new(IpAddr::from(address), 80)),
        weight: Weight(1),
        method: ForwardMethod::Masq,
        thresholds: Thresholds::default(),
        tunnel: Tunnel::default(),
    };
    Command::AddReal {
        service: web(),
        real,
    }
}

/// A daemon on a thread of this namespace.
struct Running {
    control: PathBuf,
    thread: std::thread::JoinHandle<Result<(), RunError>>,
}

fn control_path(name: &str) -> PathBuf {
    let folder = format!("ulvs-daemon-{name}-{}", std::process::id());
    std::env::temp_dir().join(folder).join("control.sock")
}

fn start(name: &str, config: Config, busy_poll: bool) -> Running {
    let options = Options {
        busy_poll,
        ..Options::default()
    };
    start_with(name, config, options)
}

fn start_with(name: &str, config: Config, options: Options) -> Running {
    let control = control_path(name);
    let options = Options {
        control: control.clone(),
        ..options
    };
    let thread = std::thread::spawn(move || run(&config, &options));
    let running = Running { control, thread };
    // Its answer means that every worker has the configuration in force.
    assert_eq!(running.ask(Request::Do(Command::Zero(None))), Reply::Done);
    running
}

impl Running {
    fn ask(&self, request: Request) -> Reply {
        let begun = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(&self.control) {
                Ok(stream) => break stream,
                Err(_) if begun.elapsed() < PATIENCE && !self.thread.is_finished() => {
                    #[expect(clippy::disallowed_methods, reason = "the socket is not there yet")]
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("no daemon behind {}: {error}", self.control.display()),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&codec::encode(&request)).unwrap();
        let mut line = Vec::new();
        BufReader::new(stream).read_until(b'\n', &mut line).unwrap();
        codec::decode_reply(&line).unwrap()
    }

    fn reals(&self) -> Vec<IpAddr> {
        match self.ask(Request::Ask(Query::Services(Some(web())))) {
            Reply::Listing(Listing::Services { services, .. }) => {
                let reals = services[0].reals.iter();
                reals.map(|real| real.spec.key.0.address).collect()
            }
            other => panic!("no services but {other:?}"),
        }
    }

    fn stop(self) {
        assert_eq!(self.ask(Request::Stop), Reply::Done);
        assert_eq!(self.thread.join().unwrap(), Ok(()));
        assert!(
            !self.control.parent().unwrap().exists(),
            "the socket's folder is left"
        );
    }
}

/// Asks by ARP from `interface` who has the VIP, until somebody says so.
fn mac_of_vip(interface: &str) -> Mac {
    let mut options = OpenOptions::new(interface, nic::Side::Public);
    options.foreign_macs = true;
    let (mut rx, mut tx) = nic::open(Backend::Mmsg, &options).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let request = arp_request();
        let view = FrameView {
            bytes: &request,
            offload: Offload::default(),
            raw_ip: false,
        };
        tx.send(&mut std::iter::once(view));
        let fd = rx.wait_fd().unwrap();
        let _ = nic::wait(&[fd], Some(crate::time::Duration::from_millis(100)));
        let Ok(count) = rx.fill() else { continue };
        let answer = (0..count).find_map(|at| answered_mac(rx.view(at).bytes));
        rx.release();
        if let Some(mac) = answer {
            return mac;
        }
    }
    panic!("nobody answers for the VIP on {interface}");
}

/// Who has 10.0.0.100, tell 10.0.0.9 (RFC 826).
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([
        2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9,
    ]);
    frame.extend([0; 6]);
    frame.extend(VIP);
    frame.resize(60, 0);
    frame
}

/// The sender's MAC of an ARP answer about the VIP.
fn answered_mac(frame: &[u8]) -> Option<Mac> {
    let is_answer = frame.get(12..14)? == [8, 6] && frame.get(20..22)? == [0, 2];
    let about_vip = frame.get(28..32)? == VIP;
    let mac = frame.get(22..28)?.try_into().ok()?;
    (is_answer && about_vip).then_some(Mac(mac))
}

fn mac_on_link(name: &str) -> Mac {
    let all = nic::interfaces();
    all.into_iter()
        .find(|interface| interface.name == name)
        .expect("interface")
        .mac
}

#[test]
fn a_director_answers_for_its_vip_and_stops_in_order() {
    in_new_network(|| {
        add_veth("eth0", "out0");
        add_veth("eth1", "out1");
        let mut config = config();
        config.director.workers = 2;
        config.director.pin = false;
        let running = start("order", config, true);
        assert_eq!(mac_of_vip("out0"), mac_on_link("eth0"));
        assert_eq!(
            running.ask(Request::Do(add_real([192, 168, 1, 12]))),
            Reply::Done
        );
        let again = running.ask(Request::Do(add_real([192, 168, 1, 12])));
        assert_eq!(again, Reply::Refused(Refusal::DestinationExists));
        match running.ask(Request::Ask(Query::Account)) {
            Reply::Listing(Listing::Account(account)) => {
                assert!(account.balances && account.answered > 0, "{account:?}");
                assert!(
                    account.silent.is_empty() && account.ports[0].1[0] > 0,
                    "{account:?}"
                );
            }
            other => panic!("no account but {other:?}"),
        }
        let second = run(
            &config_for(1),
            &Options {
                control: running.control.clone(),
                busy_poll: false,
                ..Options::default()
            },
        );
        assert!(
            second
                .unwrap_err()
                .to_string()
                .contains("another ulvs serves it")
        );
        running.stop();
    });
}

fn config_for(workers: usize) -> Config {
    let mut config = config();
    config.director.workers = workers;
    config
}

#[test]
fn sighup_makes_it_what_its_file_says_by_now_and_a_bad_file_changes_nothing() {
    in_new_network(|| {
        add_veth("eth0", "out0");
        add_veth("eth1", "out1");
        let (read, reads) = std::sync::mpsc::channel();
        let texts = std::sync::Mutex::new(vec![Err("line 3 is wrong".to_string()), Ok(changed())]);
        let reload: Reload = Arc::new(move || {
            let text = texts.lock().unwrap().pop().unwrap();
            read.send(()).unwrap();
            text
        });
        let options = Options {
            reload: Some(reload),
            ..Options::default()
        };
        let running = start_with("hangup", config(), options);
        // Requests are answered behind what was read: one loop does both.
        let hang_up = || {
            // SAFETY: sends a signal that the daemon of this process has a handler for.
            assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGHUP) }, 0);
            reads.recv_timeout(PATIENCE).expect("the file is read");
            running.reals()
        };
        let server = |last: u8| IpAddr::from([192, 168, 1, last]);
        assert_eq!(running.reals(), [server(11)]);
        assert_eq!(hang_up(), [server(12), server(11)]);
        assert_eq!(hang_up(), [server(12), server(11)]);
        running.stop();
    });
}

fn changed() -> Config {
    let mut config = config();
    config.services.push(add_real([192, 168, 1, 12]));
    config
}

#[test]
fn it_goes_on_when_an_interface_goes_down_and_when_it_is_gone() {
    in_new_network(|| {
        add_veth("eth0", "out0");
        add_veth("eth1", "out1");
        let running = start("links", config(), false);
        let before = mac_of_vip("out0");
        set_up("eth0", false);
        let alive = |running: &Running| {
            let status = running.ask(Request::Ask(Query::Status));
            assert!(
                matches!(status, Reply::Listing(Listing::Status(_))),
                "{status:?}"
            );
        };
        alive(&running);
        set_up("eth0", true);
        assert_eq!(mac_of_vip("out0"), before);
        delete("eth1");
        assert_eq!(mac_of_vip("out0"), before, "the other port goes on");
        delete("eth0");
        alive(&running);
        add_veth("eth0", "out0");
        assert_eq!(mac_of_vip("out0"), mac_on_link("eth0"));
        assert_ne!(
            mac_on_link("eth0"),
            before,
            "another interface of the same name"
        );
        alive(&running);
        running.stop();
    });
}

#[test]
fn it_does_not_start_where_the_kernel_would_answer_too() {
    in_new_network(|| {
        add_veth("eth0", "out0");
        add_veth("eth1", "out1");
        with_links(async |handle| {
            let index = index(&handle, "eth1").await?;
            handle
                .address()
                .add(index, IpAddr::from(VIP), 32)
                .execute()
                .await
        });
        let options = Options {
            control: control_path("kernel"),
            busy_poll: false,
            ..Options::default()
        };
        let mut config = config();
        config.director.keep_kernel_off = KeepKernelOff::None;
        let refused = run(&config, &options).unwrap_err().to_string();
        assert!(
            refused.contains("ip addr del 10.0.0.100/32 dev eth1"),
            "{refused}"
        );
        assert!(!options.control.exists());
    });
}

#[test]
fn what_is_missing_is_named() {
    in_new_network(|| {
        add_veth("eth0", "out0");
        let options = Options {
            control: control_path("missing"),
            busy_poll: false,
            ..Options::default()
        };
        let missing = run(&config(), &options).unwrap_err().to_string();
        assert!(
            missing.contains("eth1") && missing.contains("out0"),
            "{missing}"
        );
        assert!(!Path::new(&options.control).exists());

        let mut twice = config();
        twice.services.push(add_real([192, 168, 1, 11]));
        let refused = run(&twice, &options).unwrap_err().to_string();
        let expected =
            "service TCP 10.0.0.100:80, real server 192.168.1.11:80: Destination already exists";
        assert_eq!(refused, expected);
    });
}

#[test]
fn a_worker_that_panics_ends_the_daemon_in_order_and_with_its_words() {
    in_new_network(|| {
        let control = control_path("panic");
        let bench = threads::tests::bench(None);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let ended = runtime.block_on(async {
            let (socket, questions) = socket::open(&control).unwrap();
            let mut daemon = Daemon {
                plane: bench.plane,
                crew: bench.crew,
                links: Links::new().unwrap(),
                wanted: Vec::new(),
                seen: Vec::new(),
                signals: Signals::new().unwrap(),
                reload: None,
                questions,
                answers: BTreeMap::new(),
                faults: Vec::new(),
                stopping: false,
                stopped: false,
                kernel_off: KernelOff::nothing(),
                local_node: LocalNode::nothing(),
                _socket: socket,
            };
            bench
                .panics
                .store(true, std::sync::atomic::Ordering::SeqCst);
            daemon.crew.wake_all();
            daemon.serve().await;
            daemon.end().await
        });
        let error = ended.unwrap_err().to_string();
        assert!(
            error.contains("worker 1 panicked: the port bit me"),
            "{error}"
        );
        assert!(!control.exists(), "the socket is left behind");
    });
}

/// Addresses, routes, a neighbour and another MTU, as an operator gives them to `eth0`.
fn furnish_eth0() {
    with_links(async |handle| {
        let index = index(&handle, "eth0").await?;
        let v4 = |last| Ipv4Addr::new(10, 0, 0, last);
        let address = handle.address().add(index, v4(1).into(), 24);
        address.execute().await?;
        for (gateway, metric) in [(253, 200), (254, 100)] {
            let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(v4(gateway));
            let default = default.output_interface(index).priority(metric);
            handle.route().add(default.build()).execute().await?;
        }
        let neighbour = handle.neighbours().add(index, v4(7).into());
        let neighbour = neighbour.link_layer_address(&[2, 0, 0, 0, 0, 7]);
        neighbour.execute().await?;
        let mtu = LinkUnspec::new_with_index(index).mtu(9000).build();
        handle.link().set(mtu).execute().await
    });
}

#[test]
fn links_are_read_as_the_kernel_has_them_and_changes_are_heard() {
    in_new_network(|| {
        add_veth("eth0", "out0");
        let wanted = |addresses: Vec<(IpAddr, u8)>| Wanted {
            name: "eth0".to_string(),
            side: crate::director::snapshot::Side::Public,
            raw_ip: false,
            kernel: false,
            addresses,
            routes: Vec::new(),
            routes_from: Vec::new(),
            neighbours: Vec::new(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut links = Links::new().unwrap();
            let before = links.read(&[wanted(Vec::new())], &[]).await.unwrap();
            assert_eq!((before[0].port.mtu, before[0].state), (1500, LinkState::Up));
            std::thread::spawn(furnish_eth0).join().unwrap();
            tokio::time::timeout(PATIENCE, links.changed())
                .await
                .unwrap();
            let held = links.read(&[wanted(Vec::new())], &[]).await.unwrap();
            let port = &held[0].port;
            let ip = |text: &str| text.parse::<IpAddr>().unwrap();
            assert_eq!((port.mtu, port.mac), (9000, mac_on_link("eth0")));
            assert_eq!(port.addresses, [(ip("10.0.0.1"), 24)]);
            let on_link = (ip("10.0.0.0"), 24, None);
            let default = (ip("0.0.0.0"), 0, Some(ip("10.0.0.254")));
            assert_eq!(port.routes, [on_link, default], "the lowest metric wins");
            assert_eq!(port.neighbours, [(ip("10.0.0.7"), Mac([2, 0, 0, 0, 0, 7]))]);

            let own = vec![(ip("192.0.2.9"), 28), (ip("fd00::1"), 64)];
            let configured = links.read(&[wanted(own.clone())], &[]).await.unwrap();
            let port = &configured[0].port;
            assert_eq!(port.addresses, own, "not those of the kernel");
            let networks = [(ip("192.0.2.0"), 28, None), (ip("fd00::"), 64, None)];
            assert_eq!(port.routes, [networks[0], networks[1], on_link, default]);

            std::thread::spawn(|| delete("eth0")).join().unwrap();
            tokio::time::timeout(PATIENCE, links.changed())
                .await
                .unwrap();
            let last = std::slice::from_ref(port);
            let gone = links.read(&[wanted(own)], last).await.unwrap();
            assert_eq!((&gone[0].port, gone[0].state), (port, LinkState::Gone));
        });
    });
}
