//! TLS to PostgreSQL, in builds with the feature `pg-tls`: servers with good and bad certificates, and client
//! certificates. Each failure must end the wait at start, and name the next step.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, OnceLock, mpsc},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use tempfile::TempDir;
use tollkey_store::{
    OpenError, OpenOptions, Store,
    testing::{Database, Postgres, RealClock},
};

use crate::{Actions as _, acme, id, key, on};

const KEY_PASSWORD: &str = "example s3cret";

/// A CA of the tests.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its private key, in PEM.
struct Identity {
    certificate: String,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Issues a certificate for these hosts, valid from the beginning of a year to the beginning of another one.
    fn issue(&self, name: &str, hosts: &[&str], [begin, end]: [i32; 2]) -> Identity {
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(begin, 1, 1);
        params.not_after = date_time_ymd(end, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Identity { certificate, key }
    }
}

const VALID: [i32; 2] = [2020, 2100];
const EXPIRED: [i32; 2] = [2019, 2020];
const FUTURE: [i32; 2] = [2099, 2100];

/// Writes files of a client and returns their paths.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Writes a file that only its owner can read.
    fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// Writes a certificate and its key. Returns the parameters of the URL that name them.
    fn identity(&self, name: &str, identity: &Identity) -> String {
        let certificate = self.write(&format!("{name}.crt"), &identity.certificate);
        let key = self.write(&format!("{name}.key"), &identity.key.serialize_pem());
        format!("sslcert={certificate}&sslkey={key}")
    }
}

/// A server with TLS, and a CA that signed its certificate and accepts client certificates.
struct Server {
    postgres: &'static Postgres,
    authority: Authority,
    /// The path of the CA's certificate.
    ca: String,
    /// Deletes that file with the server.
    _files: Files,
}

impl Server {
    /// Returns the server that several tests use, or `None` without an installed PostgreSQL. Its certificate is valid
    /// for `localhost` and 127.0.0.1.
    fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED
            .get_or_init(|| Self::start(&["localhost", "127.0.0.1"], VALID))
            .as_ref()
    }

    fn start(hosts: &[&str], validity: [i32; 2]) -> Option<Self> {
        let postgres = Postgres::private_on_tcp("")?;
        let authority = Authority::new("Test CA");
        let files = Files::new();
        let ca = files.write("ca.crt", &authority.0.pem());
        postgres.write("ca.crt", &authority.0.pem());
        // Over TCP, the role `certified` needs a client certificate with its name, and `encrypted` needs TLS.
        postgres.write(
            "pg_hba.conf",
            "local all all trust\nhostssl all certified all cert\nhostssl all encrypted all trust\n\
             hostssl all postgres all trust\nhostnossl all postgres all trust\n",
        );
        let server = Self {
            postgres,
            authority,
            ca,
            _files: files,
        };
        server.present(hosts, validity);
        Some(server)
    }

    /// Restarts the server with a new certificate for these hosts.
    fn present(&self, hosts: &[&str], validity: [i32; 2]) {
        let identity = self.authority.issue("server", hosts, validity);
        self.postgres.write("server.crt", &identity.certificate);
        self.postgres
            .write("server.key", &identity.key.serialize_pem());
        for line in ["ssl = on", "ssl_ca_file = 'ca.crt'"] {
            self.postgres.configure(line);
        }
        self.postgres.control("-m fast restart");
    }

    fn database(&self) -> Database {
        let database = self.postgres.database();
        database.sql(
            "DO $$ BEGIN CREATE ROLE certified SUPERUSER LOGIN; CREATE ROLE encrypted SUPERUSER LOGIN; \
             EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$",
        );
        database
    }

    /// Returns parameters that verify the server against its CA.
    fn verified(&self) -> String {
        format!("sslmode=verify-full&sslrootcert={}", self.ca)
    }
}

fn open(url: &str) -> Result<Store, OpenError> {
    Store::open(OpenOptions::new(url), Arc::new(RealClock::default()))
}

/// Asserts that opening fails immediately, with these words and without the password of a private key.
fn assert_rejected(url: &str, words: &[&str]) {
    let error = open(url)
        .err()
        .unwrap_or_else(|| panic!("{url} was opened"));
    assert!(!error.is_transient(), "{error}");
    let shown = error.to_string();
    for word in words {
        assert!(shown.contains(word), "no {word:?}: {shown}");
    }
    assert!(!shown.contains("s3cret"), "{shown}");
}

#[test]
fn all_connections_of_a_verified_server_use_tls() {
    let Some(server) = Server::shared() else {
        return;
    };
    for host in ["localhost", "127.0.0.1"] {
        on(&server.database(), async |database| {
            let store = open(&database.url_on_tcp("postgres", host, &server.verified())).unwrap();
            store.migrate().unwrap();
            let (woken, wakes) = mpsc::channel();
            let _listener = store
                .listen(move || {
                    let _ = woken.send(());
                })
                .unwrap()
                .expect("a listener on PostgreSQL");
            wakes.recv_timeout(Duration::from_secs(30)).unwrap();
            store.add_key(&key(1, &acme())).await.unwrap();
            assert_eq!(store.key(&acme(), id(1)).await, Some(key(1, &acme())));
            database.sql(
                "DO $$ DECLARE encrypted integer; plain integer; BEGIN \
                 SELECT count(*) FILTER (WHERE ssl), count(*) FILTER (WHERE NOT ssl) INTO encrypted, plain \
                 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                 WHERE datname = current_database() AND client_addr IS NOT NULL; \
                 IF encrypted < 2 OR plain > 0 THEN RAISE '% with TLS, % without', encrypted, plain; END IF; END $$",
            );
        });
    }
}

#[test]
fn server_with_another_ca_is_rejected() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, files) = (server.database(), Files::new());
    // The second one has the name of the server's CA, like a CA that was created again.
    for name in ["Unrelated CA", "Test CA"] {
        let other = files.write("other.crt", &Authority::new(name).0.pem());
        for mode in ["verify-full", "verify-ca"] {
            let parameters = format!("sslmode={mode}&sslrootcert={other}");
            assert_rejected(
                &database.url_on_tcp("postgres", "localhost", &parameters),
                &[
                    "the server's certificate is not signed by a CA of",
                    &other,
                    "set sslrootcert to the file with the CA certificate of the server",
                ],
            );
        }
    }
}

#[test]
fn server_without_a_valid_date_is_rejected() {
    let Some(server) = Server::start(&["localhost"], EXPIRED) else {
        return;
    };
    let database = server.database();
    let url = database.url_on_tcp("postgres", "localhost", &server.verified());
    assert_rejected(
        &url,
        &["the server's certificate expired at Jan  1 00:00:00 2020 GMT; replace it at the server"],
    );
    server.present(&["localhost"], FUTURE);
    assert_rejected(
        &url,
        &["the server's certificate is not valid before Jan  1 00:00:00 2099 GMT; check the clock"],
    );
    server.present(&["localhost"], VALID);
    open(&url).unwrap();
}

#[test]
fn server_with_another_host_name_is_rejected() {
    let Some(server) = Server::shared() else {
        return;
    };
    let database = server.database();
    let url = |host, parameters: &str| database.url_on_tcp("postgres", host, parameters);
    for host in ["db.example", "127.0.0.2", "localhost.example"] {
        assert_rejected(
            &url(host, &server.verified()),
            &[
                "the server's certificate is for localhost, not for the host in DATABASE_URL",
                "give the server a certificate for this host",
            ],
        );
    }
    // This mode does not check the host.
    let only_ca = server.verified().replace("verify-full", "verify-ca");
    open(&url("db.example", &only_ca)).unwrap();
}

#[test]
fn server_without_tls_is_rejected_unless_tls_is_disabled() {
    let Some(postgres) = Postgres::private_on_tcp("") else {
        return;
    };
    let files = Files::new();
    let ca = files.write("ca.crt", &Authority::new("Test CA").0.pem());
    let database = postgres.database();
    let url = |parameters: &str| database.url_on_tcp("postgres", "db.example", parameters);
    let next = "the server has no TLS, and sslmode requires it; enable TLS at the server (ssl = on), or set \
                sslmode=disable if the network in between is trusted";
    for parameters in [
        format!("sslmode=verify-full&sslrootcert={ca}"),
        "sslmode=require".to_owned(),
        // The default for a server on another machine.
        format!("sslrootcert={ca}"),
    ] {
        assert_rejected(&url(&parameters), &[next]);
    }
    open(&url("sslmode=disable")).unwrap();
}

#[test]
fn server_that_only_accepts_tls_names_the_parameter() {
    let Some(server) = Server::shared() else {
        return;
    };
    let database = server.database();
    assert_rejected(
        &database.url_on_tcp("encrypted", "localhost", "sslmode=disable"),
        &["no encryption; set sslmode=verify-full"],
    );
    open(&database.url_on_tcp("encrypted", "localhost", &server.verified())).unwrap();
}

#[test]
fn client_certificate_authenticates_the_role() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, files) = (server.database(), Files::new());
    let url = |parameters: &str| {
        let parameters = format!("{}&{parameters}", server.verified());
        database.url_on_tcp("certified", "localhost", &parameters)
    };
    let issue = |name, validity| server.authority.issue(name, &[], validity);
    open(&url(&files.identity("good", &issue("certified", VALID)))).unwrap();

    assert_rejected(
        &url(""),
        &["requires a valid client certificate; set sslcert and sslkey in DATABASE_URL"],
    );
    let other = files.identity("other-role", &issue("somebody", VALID));
    assert_rejected(
        &url(&other),
        &["the common name of the client certificate (sslcert) must be the user name"],
    );
    let expired = files.identity("expired", &issue("certified", EXPIRED));
    assert_rejected(
        &url(&expired),
        &["the server rejects the client certificate (sslcert), because it has expired"],
    );
    let stranger = Authority::new("Unrelated CA").issue("certified", &[], VALID);
    assert_rejected(
        &url(&files.identity("stranger", &stranger)),
        &["the server rejects the client certificate (sslcert), because its CA is not in"],
    );
}

#[test]
fn encrypted_private_key_needs_its_password() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, files) = (server.database(), Files::new());
    let identity = server.authority.issue("certified", &[], VALID);
    let key = openssl::pkey::PKey::private_key_from_pem(identity.key.serialize_pem().as_bytes());
    let encrypted = key
        .and_then(|key| {
            let cipher = openssl::symm::Cipher::aes_256_cbc();
            key.private_key_to_pem_pkcs8_passphrase(cipher, KEY_PASSWORD.as_bytes())
        })
        .unwrap();
    let certificate = files.write("client.crt", &identity.certificate);
    let key = files.write("client.key", &String::from_utf8(encrypted).unwrap());
    let url = |parameters: &str| {
        let parameters = format!(
            "{}&sslcert={certificate}&sslkey={key}{parameters}",
            server.verified()
        );
        database.url_on_tcp("certified", "localhost", &parameters)
    };
    let with_password = url(&format!(
        "&sslpassword={}",
        KEY_PASSWORD.replace(' ', "%20")
    ));
    let store = open(&with_password).unwrap();
    assert!(!format!("{:?}", OpenOptions::new(&with_password)).contains("s3cret"));
    drop(store);
    // Without a password, OpenSSL would ask for it on the terminal.
    for parameters in ["", "&sslpassword=wrong%20s3cret"] {
        assert_rejected(
            &url(parameters),
            &["cannot be loaded", "sslpassword must be its password"],
        );
    }
}

#[test]
fn unusable_tls_files_are_named() {
    let Some(server) = Server::shared() else {
        return;
    };
    let (database, files) = (server.database(), Files::new());
    let identity = server.authority.issue("certified", &[], VALID);
    let good = files.identity("good", &identity);
    let text = files.write("text", "not a certificate");
    let directory = files.0.path().display().to_string();
    let missing = files.0.path().join("missing").display().to_string();
    let certificate = files.write("only.crt", &identity.certificate);
    let readable = files.write("readable.key", &identity.key.serialize_pem());
    fs::set_permissions(&readable, fs::Permissions::from_mode(0o644)).unwrap();
    let other_key = files.write("other.key", &KeyPair::generate().unwrap().serialize_pem());
    let ca = &server.ca;
    for (parameters, words) in [
        (
            format!("sslrootcert={missing}"),
            [missing.as_str(), "of sslrootcert: No such file"],
        ),
        (
            format!("sslrootcert={directory}"),
            [
                &directory,
                "of sslrootcert: it is not a file; correct the path",
            ],
        ),
        (
            format!("sslrootcert={text}"),
            ["has no PEM certificate", "set sslrootcert"],
        ),
        (
            format!("sslrootcert={ca}&sslcert={missing}&sslkey={text}"),
            [&missing, "of sslcert: No such file"],
        ),
        (
            format!("sslrootcert={ca}&sslcert={text}&sslkey={text}"),
            ["the client certificate cannot be read", "set sslcert"],
        ),
        (
            format!("sslrootcert={ca}&sslcert={certificate}&sslkey={missing}"),
            [&missing, "of sslkey: No such file"],
        ),
        (
            format!("sslrootcert={ca}&sslcert={certificate}&sslkey={readable}"),
            [
                "other users can read the private key",
                "set its mode to 0600",
            ],
        ),
        (
            format!("sslrootcert={ca}&sslcert={certificate}&sslkey={other_key}"),
            ["is not that of the client certificate", "correct one"],
        ),
        (
            format!("sslrootcert={ca}&sslcert={certificate}&sslkey={text}"),
            ["cannot be loaded", "PEM or DER"],
        ),
        // libpq would ignore these.
        (
            format!("sslrootcert={ca}&{good}&sslcrl={missing}"),
            [&missing, "of sslcrl: No such file"],
        ),
        (
            format!("sslrootcert={ca}&{good}&sslcrldir={ca}"),
            [ca, "of sslcrldir: it is not a directory"],
        ),
    ] {
        let parameters = format!("sslmode=verify-full&{parameters}");
        assert_rejected(
            &database.url_on_tcp("certified", "localhost", &parameters),
            &words,
        );
    }
}
