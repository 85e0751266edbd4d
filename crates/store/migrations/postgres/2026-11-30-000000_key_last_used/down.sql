UPDATE api_keys SET last_used_at = used.last_used_at FROM key_last_used AS used
    WHERE used.key_id = api_keys.id AND (api_keys.last_used_at IS NULL OR api_keys.last_used_at < used.last_used_at);
DROP TABLE key_last_used;
