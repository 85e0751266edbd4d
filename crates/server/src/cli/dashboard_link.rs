//! `tollkey dashboard-link`
//!
//! One plain HTTP request over loopback, as `tollkey healthcheck` sends: it shows that the server at the address accepts
//! the link, so that the command prints no link that leads nowhere. Looking at a link does not use it up.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use tollkey_core::Clock as _;
use tollkey_verifier::SystemClock;

use super::output;
use crate::{
    config::{Settings, TokenSource},
    dev_mode::{dashboard_link, signing_secret},
    random::Random,
    service::sign_in::{LINK_LASTS, Links},
};

const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    ensure!(
        matches!(settings.tokens.source, TokenSource::Development),
        "links are for development mode, and a key source for management tokens is set; sign in at \
         TOLLKEY_PUBLIC_URL/dashboard/ instead"
    );
    let address = settings.listen;
    ensure!(address.port() != 0, "the server picks its port itself; name it with --listen");
    let random = Random::system();
    let (secret, origin) = signing_secret(settings)?;
    output::note(format_args!("signed with {origin}"));
    let base_url = format!("http://{address}");
    let link = dashboard_link(&base_url, &Links::code(&secret, &random, SystemClock.now()));
    let path = link.strip_prefix(&base_url).unwrap_or_default();
    match status(address, path).with_context(|| format!("no server responds at {base_url}"))?.as_str() {
        "200" => {}
        "403" => bail!(
            "the server at {base_url} does not accept the link: it uses another database than {}, or started a moment \
             ago",
            settings.database.url.target()
        ),
        _ => bail!("the server at {base_url} is no Tollkey in development mode"),
    }
    output::note(format_args!("signs in once at {base_url}, within {} minutes:", LINK_LASTS.as_mins()));
    output::line(&*link)?;
    Ok(ExitCode::SUCCESS)
}

/// The status that the server at this address responds with to a GET of this path.
fn status(address: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    Ok(String::from_utf8_lossy(&line).strip_prefix("HTTP/1.1 ").unwrap_or_default().to_owned())
}
