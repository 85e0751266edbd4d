//! The tables of the database, as the migrations of both backends create them.

use diesel::table;

table! {
    accounts (id) {
        id -> Text,
        operating_model -> Text,
        updated_at -> BigInt,
    }
}

table! {
    applications (id) {
        id -> Binary,
        account_id -> Text,
        name -> Text,
        description -> Nullable<Text>,
        is_enabled -> Bool,
        created_at -> BigInt,
        deleted_at -> Nullable<BigInt>,
    }
}

table! {
    api_keys (id) {
        id -> Binary,
        digest -> Binary,
        account_id -> Text,
        application_id -> Nullable<Binary>,
        name -> Text,
        family -> Text,
        mode -> Text,
        prefix -> Text,
        last4 -> Text,
        scopes -> Text,
        merchants -> Nullable<Text>,
        features -> Nullable<Text>,
        allowed_ips -> Nullable<Text>,
        rate_limit_limit -> Nullable<Integer>,
        rate_limit_window_seconds -> Nullable<Integer>,
        expires_at -> Nullable<BigInt>,
        metadata -> Nullable<Text>,
        created_at -> BigInt,
        created_by -> Nullable<Binary>,
        last_used_at -> Nullable<BigInt>,
        suspended_at -> Nullable<BigInt>,
        revoked_at -> Nullable<BigInt>,
        revoked_reason -> Nullable<Text>,
        rotated_from -> Nullable<Binary>,
        rotated_to -> Nullable<Binary>,
        rotated_at -> Nullable<BigInt>,
    }
}

table! {
    key_ancestors (key_id, ancestor_id) {
        key_id -> Binary,
        ancestor_id -> Binary,
        distance -> Integer,
    }
}

table! {
    pending_revocations (root_id) {
        root_id -> Binary,
        root_kind -> Text,
        account_id -> Text,
        revoked_at -> BigInt,
        actor_kind -> Text,
        actor_id -> Text,
        request_id -> Nullable<Text>,
        ip -> Nullable<Text>,
        done_through -> Nullable<Binary>,
    }
}

table! {
    kept_answers (id) {
        id -> Binary,
        fingerprint -> Binary,
        sealed -> Binary,
        created_at -> BigInt,
    }
}

table! {
    key_usage (key_id, day, outcome) {
        key_id -> Binary,
        day -> Integer,
        outcome -> Text,
        count -> BigInt,
    }
}

table! {
    key_last_used (key_id) {
        key_id -> Binary,
        last_used_at -> BigInt,
    }
}

table! {
    audit_log (account_id, seq) {
        account_id -> Text,
        seq -> BigInt,
        id -> Binary,
        occurred_at -> BigInt,
        action -> Text,
        actor_kind -> Text,
        actor_id -> Text,
        target_kind -> Text,
        target_id -> Text,
        target_mode -> Nullable<Text>,
        request_id -> Nullable<Text>,
        ip -> Nullable<Text>,
        changes -> Text,
        hash -> Binary,
    }
}

table! {
    audit_heads (account_id) {
        account_id -> Text,
        seq -> BigInt,
        hash -> Binary,
    }
}

table! {
    service_keys (id) {
        id -> Binary,
        name -> Text,
        digest -> Binary,
        last4 -> Text,
        created_at -> BigInt,
        revoked_at -> Nullable<BigInt>,
    }
}

table! {
    sessions (digest) {
        digest -> Binary,
        account_id -> Nullable<Text>,
        subject -> Text,
        is_operator -> Bool,
        grounds -> Binary,
        created_at -> BigInt,
        last_seen_at -> BigInt,
        ends_at -> BigInt,
    }
}

table! {
    change_counter (id) {
        id -> Integer,
        seq -> BigInt,
        at -> BigInt,
    }
}

table! {
    changes (seq) {
        seq -> BigInt,
        kind -> Text,
        what -> Text,
        at -> BigInt,
    }
}

table! {
    verifiers (id) {
        id -> Binary,
        applied_seq -> BigInt,
        renewals -> BigInt,
    }
}

table! {
    settings (name) {
        name -> Text,
        value -> Text,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    accounts,
    applications,
    api_keys,
    change_counter,
    changes,
    key_ancestors,
    key_last_used,
    key_usage,
    service_keys,
);
