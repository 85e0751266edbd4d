//! The walk: what a merchant, a resource server and a key do, and what goes wrong.

use std::{io::Write, time::Duration};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use tollkey_client::{Auth, Client, Mode, Scope, account::Access, verification::Question};

/// Walks, and says each step. The client has a management token, and a service key to verify with.
pub async fn walk(tollkey: &Client, out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    writeln!(out, "== A key of an application")?;
    let applications = tollkey.applications();
    let name = format!(
        "Web store {}",
        tollkey_client::Timestamp::now().as_microsecond()
    );
    let app = applications
        .create(&name)
        .description("made by the tour")
        .await?;
    writeln!(out, "made the application {}", app.id)?;
    let keys = applications.api_keys(&app.id);
    let key = keys
        .create("Checkout")
        .mode(Mode::Test)
        .scopes([Scope::LINKS_READ])
        .await?;
    // The only time that the text of a key is seen.
    let presented = key.full_key.expose();
    writeln!(out, "made the key {}… {:?}", key.key_prefix, key.full_key)?;

    writeln!(out, "\n== What a resource server asks")?;
    let verdict = tollkey
        .verify(presented)
        .scopes([Scope::LINKS_READ])
        .method("GET")
        .path("/api/v1/links")
        .await?;
    let verified = verdict.key().context("the key is good")?;
    writeln!(
        out,
        "reading links: {}, a {} key of {}",
        verdict.code(),
        verified.mode,
        verified.account_id
    )?;
    let questions = [
        Question::new(presented).scopes([Scope::LINKS_WRITE]),
        Question::new(presented).mode(Mode::Live),
        Question::new("ck_live_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0"),
    ];
    let words = ["writing links", "with real money", "a made-up key"];
    for (word, verdict) in words
        .into_iter()
        .zip(tollkey.verify_batch(questions).await?)
    {
        writeln!(out, "{word}: {}", verdict.code())?;
    }
    let token = tollkey.introspect(presented).await?;
    writeln!(
        out,
        "introspected: active {}, scope {:?}",
        token.active,
        token.scope.unwrap_or_default()
    )?;

    writeln!(out, "\n== What the key says of itself")?;
    let me = tollkey.with_auth(Auth::key(presented)).whoami().await?;
    writeln!(out, "{} {} {}", me.family, me.mode, me.status)?;

    writeln!(
        out,
        "\n== Its application is disabled, enabled, and then the key revoked"
    )?;
    applications.disable(&app.id).await?;
    writeln!(out, "disabled: {}", tollkey.verify(presented).await?.code())?;
    applications.enable(&app.id).await?;
    writeln!(out, "enabled: {}", tollkey.verify(presented).await?.code())?;
    keys.revoke(&key.id).await?;
    writeln!(out, "revoked: {}", tollkey.verify(presented).await?.code())?;

    writeln!(out, "\n== A commerce key is rotated")?;
    let commerce = tollkey.commerce().api_keys();
    let old = commerce
        .create("Commerce Server Key")
        .rate_limit(100, Duration::from_secs(60))
        .await?;
    let new = commerce
        .rotate(&old.key_id)
        .overlap(Duration::from_secs(3600))
        .await?;
    for (word, key) in [("the old key", &old), ("the new key", &new)] {
        writeln!(
            out,
            "{word}: {}",
            tollkey.verify(&key.api_key).await?.code()
        )?;
    }
    let message = commerce
        .revoke(&old.key_id)
        .reason("rotated")
        .await?
        .message;
    writeln!(
        out,
        "{message}; the old key: {}",
        tollkey.verify(&old.api_key).await?.code()
    )?;
    commerce
        .revoke(&new.key_id)
        .reason("the tour is over")
        .await?;

    writeln!(out, "\n== An account key makes another")?;
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
        "{} {} made {} {}",
        secret.environment, secret.access, shop.environment, shop.access
    )?;
    for id in [shop.id, secret.id] {
        tollkey.account().api_keys().revoke(id).await?;
    }

    writeln!(out, "\n== What goes wrong, and how it is told")?;
    let error = applications
        .create(&name)
        .await
        .err()
        .context("the name is taken")?;
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
        .context("two members are wrong")?;
    for member in error.errors() {
        writeln!(
            out,
            "{} {}",
            member.pointer,
            member.detail.split(';').next().unwrap_or_default()
        )?;
    }

    writeln!(out, "\n== What was written down of it")?;
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
        "\nDeleted the application; nothing of the tour works any more."
    )?;
    Ok(())
}
