//! `tollkey dashboard-link`
//!
//! A request to the server checks that it accepts the link before the command prints the link. A GET does not use the
//! link up.

use anyhow::{Context as _, bail, ensure};
use std::process::ExitCode;
use tollkey_core::Clock as _;
use tollkey_service::Random;
use tollkey_verifier::SystemClock;

use super::{local_request, output};
use crate::{
    auth::sign_in_links::{LINK_LIFETIME, SignInLinks},
    config::{Settings, TokenSource},
    dev_mode::{dashboard_link, signing_secret},
};

pub(super) fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    ensure!(
        matches!(settings.tokens.source, TokenSource::Development),
        "sign-in links are for development mode only, and a key source for management tokens is set; sign in at \
         TOLLKEY_PUBLIC_URL/dashboard/ instead"
    );
    let random = Random::system();
    let (secret, origin) = signing_secret(settings)?;
    let address = local_request::target(settings)?;
    output::note(format_args!("signed with {origin}"));
    let base_url = format!("http://{address}");
    let link = dashboard_link(
        &base_url,
        &SignInLinks::code(&secret, &random, SystemClock.now()),
    );
    let path = link.strip_prefix(&base_url).unwrap_or_default();
    match local_request::status(&address, path)
        .with_context(|| format!("no server responds at {base_url}"))?
        .as_str()
    {
        "200" => {}
        "403" => bail!(
            "the server at {base_url} does not accept the link: it uses another database than {}, or started a moment \
             ago",
            settings.database.url.target()
        ),
        _ => bail!("the server at {base_url} is not a Tollkey server in development mode"),
    }
    output::note(format_args!(
        "signs in once at {base_url}, within {} minutes:",
        LINK_LIFETIME.as_mins()
    ));
    output::line(&*link)?;
    Ok(ExitCode::SUCCESS)
}
