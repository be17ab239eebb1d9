//! What the tests have in common: services on the command line, and clients and servers in threads of this process.

use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lb_tests::balancer::Balancer;
use lb_tests::namespace::Namespace;
use lb_tests::topology::{Server, Topology, VIP, VIP_V6};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

/// How long anything may take that takes milliseconds on an idle machine. Nobody waits this long unless it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How a network is made, for tables.
pub(crate) type Make = fn(u8) -> Result<Topology>;

/// An address family, for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn vip(self) -> IpAddr {
        match self {
            Self::V4 => VIP.into(),
            Self::V6 => VIP_V6.into(),
        }
    }

    /// An address of the VIP.
    pub(crate) fn service(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip(), port)
    }

    /// An address of a server.
    pub(crate) fn at(self, server: &Server, port: u16) -> SocketAddr {
        let ip = match self {
            Self::V4 => server.ipv4.into(),
            Self::V6 => server.ipv6.into(),
        };
        SocketAddr::new(ip, port)
    }
}

/// `--service S --backend B ...`
pub(crate) fn service(
    service: SocketAddr,
    protocol: &str,
    backends: impl IntoIterator<Item = SocketAddr>,
) -> Vec<String> {
    let backends = backends.into_iter().flat_map(|backend| ["--backend".to_owned(), backend.to_string()]);
    ["--service".to_owned(), format!("{service}/{protocol}")].into_iter().chain(backends).collect()
}

/// The same service over both families, on one port of the VIP and of all servers.
pub(crate) fn both_families(topology: &Topology, port: u16, protocol: &str) -> Vec<String> {
    Family::ALL
        .into_iter()
        .flat_map(|family| {
            let backends = topology.servers.iter().map(|server| family.at(server, port));
            service(family.service(port), protocol, backends)
        })
        .collect()
}

/// Starts the balancer on all its interfaces.
pub(crate) fn start(topology: &Topology, args: &[String]) -> Result<Balancer> {
    topology.start_balancer(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What a reading command of `lb` writes.
pub(crate) fn json(topology: &Topology, args: &[&str]) -> Result<Value> {
    let text = topology.lb(&[args, &["--json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("`lb {}` wrote no JSON: {text}", args.join(" ")))
}

/// A program that passes everything, as a file: veth wants one on the peer of an interface that sends with XDP_TX.
pub(crate) fn pass_object(topology: &Topology) -> Result<PathBuf> {
    let path = topology.tag().directory().join("pass.o");
    fs::write(&path, lb_user::program::PASS)?;
    Ok(path)
}

/// The id of the XDP program on an interface, in the kernel's own words.
pub(crate) fn xdp_program(namespace: &Namespace, device: &str) -> Result<Option<u32>> {
    let shown = namespace.ip(&format!("-details -json link show dev {device}"))?;
    let links: Value = serde_json::from_str(&shown)?;
    let id = links.pointer("/0/xdp/prog/id").and_then(Value::as_u64);
    Ok(id.map(u32::try_from).transpose()?)
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begin = Instant::now();
    while !condition()? {
        ensure!(begin.elapsed() < PATIENCE, "waited {} s in vain until {what}", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(begin.elapsed())
}

/// Room for thousands of sockets in this process.
pub(crate) fn many_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most)?)
}

/// Sockets of a namespace: whoever uses them, they stay there.
pub(crate) trait Sockets {
    /// Connects; what is sent or awaited afterwards may take [`PATIENCE`].
    fn connect(&self, to: SocketAddr) -> Result<TcpStream>;
    /// Connects from a given address and port.
    fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> Result<TcpStream>;
    fn listen(&self, at: SocketAddr) -> Result<TcpListener>;
    /// A UDP socket; what is awaited may take [`PATIENCE`].
    fn udp(&self, at: SocketAddr) -> Result<UdpSocket>;
}

impl Sockets for Namespace {
    fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        self.connect_from(unspecified(to), to)
    }

    fn connect_from(&self, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
        let socket = {
            let _inside = self.enter()?;
            Socket::new(Domain::for_address(to), Type::STREAM, None)?
        };
        if from.port() != 0 {
            // The same port towards several services.
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        socket.connect_timeout(&to.into(), PATIENCE).with_context(|| format!("cannot connect to {to}"))?;
        let stream = TcpStream::from(socket);
        patient(&stream)?;
        Ok(stream)
    }

    fn listen(&self, at: SocketAddr) -> Result<TcpListener> {
        let _inside = self.enter()?;
        TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"))
    }

    fn udp(&self, at: SocketAddr) -> Result<UdpSocket> {
        let _inside = self.enter()?;
        let socket = UdpSocket::bind(at).with_context(|| format!("cannot bind {at}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    }
}

fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)
}

/// Any address of the other's family.
pub(crate) fn unspecified(like: SocketAddr) -> SocketAddr {
    let ip: IpAddr = if like.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    SocketAddr::new(ip, 0)
}

/// Every address of both families.
fn wildcard(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// How a server says who it is, and as whom it sees its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) server: usize,
    pub(crate) client: SocketAddr,
}

impl Greeting {
    fn line(server: usize, client: SocketAddr) -> String {
        format!("{server} {}\n", SocketAddr::new(client.ip().to_canonical(), client.port()))
    }

    fn read(line: &str) -> Result<Self> {
        let (server, client) =
            line.trim_end().split_once(' ').with_context(|| format!("no greeting: {line:?}"))?;
        Ok(Self { server: server.parse()?, client: client.parse()? })
    }
}

/// Who ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// The server, after its greeting.
    Brief,
    /// The client: after its greeting, the server echoes until the client has sent everything.
    Echo,
}

/// A TCP server of both families in threads of this process. Dropping it ends it.
pub(crate) struct Greeter {
    listener: Arc<TcpListener>,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Greeter {
    pub(crate) fn start(namespace: &Namespace, server: usize, port: u16, manners: Manners) -> Result<Self> {
        let listener = Arc::new(namespace.listen(wildcard(port))?);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (door, count) = (Arc::clone(&listener), Arc::clone(&accepted));
        let thread = thread::spawn(move || {
            while let Ok((stream, client)) = door.accept() {
                count.fetch_add(1, Ordering::Relaxed);
                // A client that is gone is no concern of the server.
                thread::spawn(move || greet(stream, server, client, manners));
            }
        });
        Ok(Self { listener, accepted, thread: Some(thread) })
    }

    /// One on each server of a topology, under the server's number.
    pub(crate) fn on_all(topology: &Topology, port: u16, manners: Manners) -> Result<Vec<Self>> {
        topology
            .servers
            .iter()
            .map(|server| Self::start(&server.namespace, server.number.into(), port, manners))
            .collect()
    }

    /// How many connections it has accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        // That wakes the thread.
        let _ended = SockRef::from(&*self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

fn greet(mut stream: TcpStream, server: usize, client: SocketAddr, manners: Manners) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Without a client the thread ends too.
    stream.set_read_timeout(Some(4 * PATIENCE))?;
    stream.write_all(Greeting::line(server, client).as_bytes())?;
    if manners == Manners::Echo {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                length => stream.write_all(buffer.get(..length).unwrap_or_default())?,
            }
        }
    }
    Ok(())
}

/// A connection to a [`Greeter`].
pub(crate) struct Visit {
    stream: BufReader<TcpStream>,
    pub(crate) greeting: Greeting,
}

impl Visit {
    pub(crate) fn begin(from: &Namespace, to: SocketAddr) -> Result<Self> {
        Self::over(from.connect(to)?)
    }

    pub(crate) fn over(stream: TcpStream) -> Result<Self> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).context("no greeting")?;
        Ok(Self { greeting: Greeting::read(&line)?, stream })
    }

    /// Sends a line to an echoing server and awaits it back.
    pub(crate) fn say(&mut self, text: &str) -> Result<()> {
        self.stream.get_mut().write_all(format!("{text}\n").as_bytes()).context("cannot send")?;
        let mut line = String::new();
        self.stream.read_line(&mut line).context("no echo")?;
        ensure!(line.trim_end() == text, "{text:?} came back as {line:?}");
        Ok(())
    }

    /// The end: of a brief server's connection after the server has closed it, of an echoing one's before.
    pub(crate) fn end(mut self, manners: Manners) -> Result<()> {
        if manners == Manners::Echo {
            self.stream.get_mut().shutdown(Shutdown::Write)?;
        }
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).context("no end")?;
        ensure!(rest.is_empty(), "{} bytes too many", rest.len());
        Ok(())
    }
}

/// A UDP server of both families in a thread of this process: it answers with a greeting and what it got.
pub(crate) struct UdpEcho {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    pub(crate) fn start(namespace: &Namespace, server: usize, port: u16) -> Result<Self> {
        let socket = namespace.udp(wildcard(port))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let mut answer = Greeting::line(server, client).into_bytes();
                answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
                let _gone = socket.send_to(&answer, client);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    pub(crate) fn on_all(topology: &Topology, port: u16) -> Result<Vec<Self>> {
        topology
            .servers
            .iter()
            .map(|server| Self::start(&server.namespace, server.number.into(), port))
            .collect()
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Sends a datagram to a [`UdpEcho`], which has to come back whole.
pub(crate) fn ask(socket: &UdpSocket, to: SocketAddr, text: &[u8]) -> Result<Greeting> {
    socket.send_to(text, to).with_context(|| format!("cannot send to {to}"))?;
    let mut buffer = [0; 65_536];
    // Signals interrupt whoever waits with a time limit (socket(7)); other tests' children end meanwhile.
    let received = loop {
        match socket.recv_from(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received,
        }
    };
    let (length, from) = received.with_context(|| format!("no answer of {to}"))?;
    ensure!(from == to, "{from} answered instead of {to}");
    let answer = buffer.get(..length).unwrap_or_default();
    let end = answer.iter().position(|byte| *byte == b'\n').context("no greeting")?;
    let (greeting, echo) = answer.split_at(end + 1);
    ensure!(echo == text, "{} bytes came back, not the {} that were sent", echo.len(), text.len());
    Greeting::read(std::str::from_utf8(greeting)?)
}

/// Whether an error means that the other side, or the balancer, has ended the connection.
pub(crate) fn is_reset(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(
            error.kind(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
        )
    })
}

/// Runs something in several threads at once, and fails if one fails.
pub(crate) fn at_once<T: Send>(threads: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads)
            .map(|number| {
                thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, move || work(number))
            })
            .collect::<io::Result<_>>()?;
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("a thread panicked"),
            })
            .collect()
    })
}
