//! Account keys, which all other tests create through the storlaunch API.

use serde_json::{Value, json};

use super::{App, Key, Reply};

pub const KEYS: &str = "/v1/account/api-keys";

/// A request body for a new account key.
pub fn key_request(environment: &str, access: &str) -> Value {
    json!({"name": "Production webhook handler", "environment": environment, "access": access})
}

/// Creates an account key.
pub async fn create_key(app: &App, by: &str, body: Value) -> Key {
    let reply = app.post(KEYS, body).bearer(by).await;
    assert_eq!(reply.status, 201, "{reply}");
    created_key(&reply)
}

/// Returns the created key of a response.
pub fn created_key(reply: &Reply) -> Key {
    let data = reply.json()["data"].clone();
    let text = |field: &str| {
        data[field]
            .as_str()
            .unwrap_or_else(|| panic!("no {field}: {reply}"))
            .to_owned()
    };
    Key {
        id: text("id"),
        text: text("value"),
    }
}
