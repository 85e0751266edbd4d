//! The tour: calls as an account, as a resource server and as a key, and some errors.

use std::{io::Write, time::Duration};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use tollkey_client::{
    Auth, Client, Mode, Scope, account::Access, verification::VerificationRequest,
};

/// Runs the tour and prints each step. The client needs a management token, and a service key to verify keys.
pub async fn walk(tollkey: &Client, out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    writeln!(out, "== A key of an application")?;
    let applications = tollkey.applications();
    let name = format!(
        "Web store {}",
        tollkey_client::Timestamp::now().as_microsecond()
    );
    let app = applications
        .create(&name)
        .description("created by the tour")
        .await?;
    writeln!(out, "created the application {}", app.id)?;
    let keys = applications.api_keys(&app.id);
    let key = keys
        .create("Checkout")
        .mode(Mode::Test)
        .scopes([Scope::LINKS_READ])
        .await?;
    // Only this response contains the full key.
    let presented = key.full_key.expose();
    writeln!(
        out,
        "created the key {}… {:?}",
        key.key_prefix, key.full_key
    )?;

    writeln!(out, "\n== A resource server verifies it")?;
    let verdict = tollkey
        .verify(presented)
        .scopes([Scope::LINKS_READ])
        .method("GET")
        .path("/api/v1/links")
        .await?;
    let verified = verdict.key().context("a valid key")?;
    writeln!(
        out,
        "reading links: {}, a {} key of {}",
        verdict.code(),
        verified.mode,
        verified.account_id
    )?;
    let requests = [
        VerificationRequest::new(presented).scopes([Scope::LINKS_WRITE]),
        VerificationRequest::new(presented).mode(Mode::Live),
        VerificationRequest::new("ck_live_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0"),
    ];
    let names = ["writing links", "in live mode", "an unknown key"];
    for (name, verdict) in names.into_iter().zip(tollkey.verify_batch(requests).await?) {
        writeln!(out, "{name}: {}", verdict.code())?;
    }
    let token = tollkey.introspect(presented).await?;
    writeln!(
        out,
        "introspected: active {}, scope {:?}",
        token.active,
        token.scope.unwrap_or_default()
    )?;

    writeln!(out, "\n== The key describes itself")?;
    let me = tollkey.with_auth(Auth::key(presented)).whoami().await?;
    writeln!(out, "{} {} {}", me.family, me.mode, me.status)?;

    writeln!(
        out,
        "\n== Its application is disabled and enabled, then the key is revoked"
    )?;
    applications.disable(&app.id).await?;
    writeln!(out, "disabled: {}", tollkey.verify(presented).await?.code())?;
    applications.enable(&app.id).await?;
    writeln!(out, "enabled: {}", tollkey.verify(presented).await?.code())?;
    keys.revoke(&key.id).await?;
    writeln!(out, "revoked: {}", tollkey.verify(presented).await?.code())?;

    writeln!(out, "\n== A commerce key is rotated")?;
    let commerce = tollkey.commerce().api_keys();
    let predecessor = commerce
        .create("Commerce Server Key")
        .rate_limit(100, Duration::from_secs(60))
        .await?;
    let successor = commerce
        .rotate(&predecessor.key_id)
        .overlap(Duration::from_secs(3600))
        .await?;
    for (name, key) in [("predecessor", &predecessor), ("successor", &successor)] {
        writeln!(
            out,
            "{name}: {}",
            tollkey.verify(&key.api_key).await?.code()
        )?;
    }
    let message = commerce
        .revoke(&predecessor.key_id)
        .reason("rotated")
        .await?
        .message;
    writeln!(
        out,
        "{message}; predecessor: {}",
        tollkey.verify(&predecessor.api_key).await?.code()
    )?;
    commerce
        .revoke(&successor.key_id)
        .reason("the tour has ended")
        .await?;

    writeln!(out, "\n== An account key creates another")?;
    let secret = tollkey
        .account()
        .api_keys()
        .create("CI", Mode::Test, Access::Secret)
        .await?;
    let account = tollkey
        .with_auth(Auth::key(secret.value.expose()))
        .account();
    let shop = account
        .api_keys()
        .create("Web shop", Mode::Test, Access::Publishable)
        .await?;
    writeln!(
        out,
        "{} {} created {} {}",
        secret.environment, secret.access, shop.environment, shop.access
    )?;
    for id in [shop.id, secret.id] {
        tollkey.account().api_keys().revoke(id).await?;
    }

    writeln!(out, "\n== Errors")?;
    let error = applications
        .create(&name)
        .await
        .err()
        .context("an error because the name is taken")?;
    writeln!(
        out,
        "{} {}",
        error.status().unwrap_or_default(),
        error.code().unwrap_or_default()
    )?;
    let error = commerce
        .create("")
        .scopes([Scope::named("links:destroy")])
        .await
        .err()
        .context("an error because two fields are invalid")?;
    for field in error.errors() {
        writeln!(
            out,
            "{} {}",
            field.pointer,
            field.detail.split(';').next().unwrap_or_default()
        )?;
    }

    writeln!(out, "\n== The audit log of the key")?;
    let log: Vec<_> = tollkey
        .audit_log()
        .list()
        .target_id(&key.id)
        .items()
        .try_collect()
        .await?;
    for entry in log {
        writeln!(
            out,
            "{} by {} {}",
            entry.action, entry.actor.r#type, entry.actor.id
        )?;
    }

    applications.delete(&app.id).await?;
    writeln!(
        out,
        "\nDeleted the application; all keys of the tour are revoked."
    )?;
    Ok(())
}
