//! What is kept: the members of each kind, and the rules for them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Map, Value};
use tollkey_axum::Mode;
use uuid::Uuid;

use crate::{
    books::{Book, Shelf},
    failure::Failure,
};

/// A kind of thing.
pub trait Thing: Clone + Serialize + Send + Sync + 'static {
    /// What it is called in ids and events.
    const NAME: &'static str;

    /// What every thing has.
    fn head(&self) -> &Head;
    /// Those of a book.
    fn shelf(book: &Book) -> &Shelf<Self>;
    /// Those of a book, to be changed.
    fn shelf_mut(book: &mut Book) -> &mut Shelf<Self>;
}

/// A kind that can be created.
pub trait Creatable: Thing {
    /// The body that says so.
    type New: DeserializeOwned + Send;

    /// A new one.
    ///
    /// # Errors
    /// The rule that the body does not keep.
    fn create(head: Head, new: Self::New) -> Result<Self, Failure>;
}

/// A kind that can be changed.
pub trait Changeable: Creatable {
    /// The body that says so; what it leaves out stays.
    type Change: DeserializeOwned + Send;

    /// Changes it.
    ///
    /// # Errors
    /// The rule that the body does not keep; the thing is then as it was.
    fn change(&mut self, change: Self::Change) -> Result<(), Failure>;
}

/// What every thing has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Its id.
    pub id: String,
    #[serde(serialize_with = "mode_name")]
    mode: Mode,
    created_at: String,
}

impl Head {
    /// That of a new thing.
    #[must_use]
    pub fn new(name: &str, mode: Mode) -> Self {
        let id = format!("{name}_{}", Uuid::now_v7().simple());
        let second = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        Self { id, mode, created_at: second.to_string() }
    }
}

fn mode_name<S: Serializer>(mode: &Mode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(mode.as_str())
}

/// Where a kind stands in a book.
macro_rules! kept {
    ($thing:ty, $name:literal, $shelf:ident) => {
        impl Thing for $thing {
            const NAME: &'static str = $name;

            fn head(&self) -> &Head {
                &self.head
            }

            fn shelf(book: &Book) -> &Shelf<Self> {
                &book.$shelf
            }

            fn shelf_mut(book: &mut Book) -> &mut Shelf<Self> {
                &mut book.$shelf
            }
        }
    };
}

kept!(Link, "link", links);
kept!(Session, "session", sessions);
kept!(Webhook, "webhook", webhooks);
kept!(Customer, "customer", customers);
kept!(Event, "event", events);

/// An amount of money: `{"value": "49.99", "currency": "USD"}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    value: String,
    currency: String,
}

impl Amount {
    fn check(&self) -> Result<(), Failure> {
        let (whole, fraction) = self.value.split_once('.').unwrap_or((&self.value, "0"));
        let digits = |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        let is_number =
            digits(whole, 12) && digits(fraction, 8) && self.value.bytes().any(|b| (b'1'..=b'9').contains(&b));
        Failure::unless(is_number, "amount.value must be a decimal number above zero, such as \"49.99\"")?;
        let is_code = self.currency.len() == 3 && self.currency.bytes().all(|byte| byte.is_ascii_uppercase());
        Failure::unless(is_code, "amount.currency must be three capital letters, such as \"USD\"")
    }
}

fn check_url(url: &str, rule: &str) -> Result<(), Failure> {
    let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let is_url = host.is_some_and(|host| !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic()));
    Failure::unless(is_url, rule)
}

/// A payment link.
#[derive(Debug, Clone, Serialize)]
pub struct Link {
    #[serde(flatten)]
    head: Head,
    amount: Amount,
    description: Option<String>,
    active: bool,
    metadata: Map<String, Value>,
}

/// `POST /links`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLink {
    amount: Amount,
    description: Option<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// `PATCH /links/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkChange {
    amount: Option<Amount>,
    description: Option<String>,
    active: Option<bool>,
    metadata: Option<Map<String, Value>>,
}

impl Creatable for Link {
    type New = NewLink;

    fn create(head: Head, new: NewLink) -> Result<Self, Failure> {
        new.amount.check()?;
        let NewLink { amount, description, metadata } = new;
        Ok(Self { head, amount, description, active: true, metadata })
    }
}

impl Changeable for Link {
    type Change = LinkChange;

    fn change(&mut self, change: LinkChange) -> Result<(), Failure> {
        change.amount.iter().try_for_each(Amount::check)?;
        self.amount = change.amount.unwrap_or_else(|| self.amount.clone());
        self.description = change.description.or_else(|| self.description.take());
        self.active = change.active.unwrap_or(self.active);
        self.metadata = change.metadata.unwrap_or_else(|| std::mem::take(&mut self.metadata));
        Ok(())
    }
}

/// A checkout session. It stays open: nobody pays here.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    #[serde(flatten)]
    head: Head,
    status: &'static str,
    amount: Amount,
    success_url: String,
    metadata: Map<String, Value>,
}

/// `POST /sessions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NewSession {
    amount: Amount,
    success_url: String,
    #[serde(default)]
    metadata: Map<String, Value>,
}

impl Creatable for Session {
    type New = NewSession;

    fn create(head: Head, new: NewSession) -> Result<Self, Failure> {
        new.amount.check()?;
        check_url(&new.success_url, "successUrl must begin with https:// or http://")?;
        let NewSession { amount, success_url, metadata } = new;
        Ok(Self { head, status: "open", amount, success_url, metadata })
    }
}

/// A webhook endpoint. It is kept and shown; nothing is sent to it.
#[derive(Debug, Clone, Serialize)]
pub struct Webhook {
    #[serde(flatten)]
    head: Head,
    url: String,
}

/// `POST /webhooks`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    url: String,
}

impl Creatable for Webhook {
    type New = NewWebhook;

    fn create(head: Head, new: NewWebhook) -> Result<Self, Failure> {
        check_url(&new.url, "url must begin with https:// or http://")?;
        Ok(Self { head, url: new.url })
    }
}

/// A customer.
#[derive(Debug, Clone, Serialize)]
pub struct Customer {
    #[serde(flatten)]
    head: Head,
    email: String,
    name: Option<String>,
    metadata: Map<String, Value>,
}

/// `POST /customers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCustomer {
    email: String,
    name: Option<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// `PATCH /customers/{id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomerChange {
    email: Option<String>,
    name: Option<String>,
    metadata: Option<Map<String, Value>>,
}

fn check_email(email: &str) -> Result<(), Failure> {
    let is_address = email.split_once('@').is_some_and(|(who, host)| !who.is_empty() && !host.is_empty());
    Failure::unless(is_address, "email must be an address, such as \"ada@example.com\"")
}

impl Creatable for Customer {
    type New = NewCustomer;

    fn create(head: Head, new: NewCustomer) -> Result<Self, Failure> {
        check_email(&new.email)?;
        let NewCustomer { email, name, metadata } = new;
        Ok(Self { head, email, name, metadata })
    }
}

impl Changeable for Customer {
    type Change = CustomerChange;

    fn change(&mut self, change: CustomerChange) -> Result<(), Failure> {
        change.email.iter().try_for_each(|email| check_email(email))?;
        self.email = change.email.unwrap_or_else(|| std::mem::take(&mut self.email));
        self.name = change.name.or_else(|| self.name.take());
        self.metadata = change.metadata.unwrap_or_else(|| std::mem::take(&mut self.metadata));
        Ok(())
    }
}

/// Something that happened: `link.created`, `customer.updated`, …
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    #[serde(flatten)]
    head: Head,
    r#type: String,
    data: About,
}

/// What it happened to.
#[derive(Debug, Clone, Serialize)]
struct About {
    id: String,
}

impl Event {
    /// That this was done to a thing.
    #[must_use]
    pub fn of<T: Thing>(what: &str, thing: &Head) -> Self {
        let (head, r#type) = (Head::new(Self::NAME, thing.mode), format!("{}.{what}", T::NAME));
        Self { head, r#type, data: About { id: thing.id.clone() } }
    }
}
