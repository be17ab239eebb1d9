//! Real web servers and a real client: nginx and curl.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::namespace::Namespace;
use crate::process::{self, Process};

const READY_WITHIN: Duration = Duration::from_secs(10);

/// How long a request may take, in seconds, before it counts as lost.
const CURL_SECONDS: &str = "3";

/// nginx, run from a directory of its own: nothing of the host's configuration, logs or caches is used.
///
/// One process without a master, so that ending it ends everything, and no user of the host is needed.
const CONFIGURATION: &str = "\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    log_format client $remote_addr;
    access_log access.log client;
    client_body_temp_path temp;
    proxy_temp_path temp;
    fastcgi_temp_path temp;
    uwsgi_temp_path temp;
    scgi_temp_path temp;
    server {
        listen 80 backlog=8192;
        listen [::]:80 backlog=8192;
        root html;
    }
}
";

/// Where `cargo xtask setup` unpacks a server: nginx, or HAProxy for benchmarks.
pub fn unpacked(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("tools").join(program)
}

/// A server's program: the host's, or the unpacked one.
pub fn find_server(program: &str) -> Option<PathBuf> {
    let unpacked = unpacked(program).join("usr/sbin").join(program);
    process::find(program).or_else(|| unpacked.is_file().then_some(unpacked))
}

/// A running nginx. Dropping it stops it.
#[derive(Debug)]
pub struct Web {
    directory: PathBuf,
    _process: Process,
}

impl Web {
    /// Starts nginx on port 80 and waits until it accepts connections.
    ///
    /// `directory` is made, and holds all its files; what is in its `html`, it serves.
    ///
    /// # Errors
    ///
    /// If there is no nginx, or it does not start.
    pub fn start(namespace: &Namespace, directory: &Path, page: &str) -> Result<Self> {
        let nginx = find_server("nginx").context("there is no nginx here: type `cargo xtask setup`")?;
        fs::create_dir_all(directory.join("html"))?;
        fs::write(directory.join("html/index.html"), page)?;
        fs::write(directory.join("nginx.conf"), CONFIGURATION)?;
        let mut command = namespace.command(nginx);
        command.arg("-p").arg(directory).args(["-c", "nginx.conf", "-e", "stderr"]);
        let mut process = Process::spawn(&mut command)?;
        let accepts = || {
            let _inside = namespace.enter()?;
            anyhow::Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, 80))?)
        };
        process.wait_until(READY_WITHIN, |_| accepts().is_ok())?;
        Ok(Self { directory: directory.to_owned(), _process: process })
    }

    /// The directory with the files that it serves.
    pub fn html(&self) -> PathBuf {
        self.directory.join("html")
    }

    /// The client addresses that it has logged, one for each request, oldest first.
    ///
    /// # Errors
    ///
    /// If the log cannot be read.
    pub fn clients(&self) -> Result<Vec<String>> {
        let log = self.directory.join("access.log");
        let text = fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Namespace {
    /// Fetches a page with curl.
    ///
    /// # Errors
    ///
    /// If there is no answer in time, or not status 200.
    pub fn fetch(&self, url: &str) -> Result<String> {
        let args = [
            "--silent",
            "--show-error",
            "--fail",
            "--globoff",
            "--noproxy",
            "*",
            "--max-time",
            CURL_SECONDS,
            url,
        ];
        self.run("curl", args)
    }
}
