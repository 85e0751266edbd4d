//! Sign-ins to the dashboard.

use std::net::SocketAddr;

use reqwest::Url;

use super::{Call, Reply};

pub const SESSION: &str = "__Host-tollkey_session";

pub const SIGN_IN: &str = "__Host-tollkey_sign_in";

/// Returns `name=value` of the cookie that the response sets, or `None` if it sets none or clears it.
pub fn cookie(reply: &Reply, name: &str) -> Option<String> {
    let set = reply
        .all("set-cookie")
        .into_iter()
        .find(|set| set.starts_with(&format!("{name}=")))?;
    let pair = set.split(';').next()?;
    (!pair.ends_with('=')).then(|| pair.to_owned())
}

/// A started sign-in: the URL of the redirect to the provider, and the cookie that the browser stores.
pub struct StartedSignIn {
    pub url: Url,
    pub cookie: String,
}

pub fn started(reply: &Reply) -> StartedSignIn {
    assert_eq!(reply.status, 303, "{reply}");
    let url = reply
        .header("location")
        .expect("a Location header")
        .parse()
        .expect("a URL");
    StartedSignIn {
        url,
        cookie: cookie(reply, SIGN_IN).expect("a cookie"),
    }
}

/// Signs in with a management token. Returns the session cookie.
pub async fn sign_in_at(address: SocketAddr, token: &str) -> String {
    let path = "/dashboard/sign-in/token";
    let form = Call::new(address, "POST", path)
        .header("sec-fetch-site", "same-origin")
        .form(&format!("token={token}"));
    cookie(&form.await, SESSION).expect("a session")
}

/// Returns the status of the key list for a session: 200, or 303 to the sign-in page.
pub async fn keys_at(address: SocketAddr, session: &str) -> u16 {
    Call::new(address, "GET", "/dashboard/keys")
        .header("cookie", session)
        .await
        .status
}
