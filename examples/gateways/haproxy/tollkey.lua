-- The action lua.tollkey authorizes a request with Tollkey. Its argument is the address of the proxy to Tollkey.
--
-- Reads the requirements of the route from txn.tollkey_required, a query that the configuration sets. If Tollkey allows
-- the request, the action sets txn.tollkey_allowed and the caller (txn.tollkey_key_id and so on). If Tollkey denies it,
-- the client gets that response. Any other response is 503. If Lua fails, HAProxy continues with the next rule, so the
-- configuration must deny requests without txn.tollkey_allowed.

-- The host is not used: the connection goes to the argument.
local URL = "http://127.0.0.1/api/v1/authz/forward-auth?"
-- Longer than the timeouts of the proxy, so that those apply first.
local TIMEOUT_MS = 10000

-- The headers that Tollkey evaluates, with all values: Tollkey must see a second credential or merchant.
local REQUEST_HEADERS = { "authorization", "x-api-key", "x-commerce-api-key", "x-merchant-id", "x-request-id" }
-- The caller, as Tollkey's response names it.
local IDENTITY = { "key_id", "account_id", "application_id", "mode", "scopes", "merchant_id" }
-- The statuses of Tollkey's denials.
local DENIALS = { [400] = true, [401] = true, [403] = true, [429] = true, [503] = true }
-- The headers of a denial that the client gets.
local RESPONSE_HEADERS = { "content-type", "www-authenticate", "retry-after", "x-request-id" }

-- Returns the first value of a header. HAProxy's tables begin at 0.
local function first(values)
    return values and values[0]
end

-- Returns Tollkey's response for this request, or nil.
local function authorize(txn, proxy, required)
    local presented = txn.http:req_get_headers()
    local headers = {
        ["x-forwarded-method"] = { txn.f:method() },
        ["x-forwarded-uri"] = { txn.f:pathq() },
        ["x-forwarded-for"] = { txn.f:src() },
    }
    for _, name in ipairs(REQUEST_HEADERS) do
        local values = presented[name]
        if values then
            headers[name] = {}
            for index = 0, #values do
                table.insert(headers[name], values[index])
            end
        end
    end
    return core.httpclient():get { url = URL .. required, headers = headers, dst = proxy, timeout = TIMEOUT_MS }
end

local function deny(txn, response)
    local reply = txn:reply { status = 503 }
    local is_denial = response and DENIALS[response.status]
    -- Tollkey's denials are problems; a 503 of the proxy is not.
    if is_denial and first(response.headers["content-type"]) == "application/problem+json" then
        reply:set_status(response.status)
        for _, name in ipairs(RESPONSE_HEADERS) do
            local value = first(response.headers[name])
            if value then
                reply:add_header(name, value)
            end
        end
        reply:set_body(response.body)
    else
        reply:add_header("content-type", "application/problem+json")
        reply:set_body('{"type":"about:blank","title":"Service Unavailable","status":503}')
    end
    txn:done(reply)
end

core.register_action("tollkey", { "http-req" }, function(txn, proxy)
    local required = txn:get_var("txn.tollkey_required")
    local response = required and authorize(txn, proxy, required)
    if not response or response.status ~= 200 then
        return deny(txn, response)
    end
    for _, name in ipairs(IDENTITY) do
        local value = first(response.headers["x-auth-" .. name:gsub("_", "-")])
        if not value then
            return deny(txn) -- not a response of Tollkey
        end
        txn:set_var("txn.tollkey_" .. name, value)
    end
    txn:set_var("txn.tollkey_allowed", true)
end, 1)
