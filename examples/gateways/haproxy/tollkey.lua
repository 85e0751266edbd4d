-- The action lua.tollkey: asks Tollkey whether a request may pass. Its argument is the way to Tollkey, as an address of
-- HAProxy's.
--
-- Reads txn.tollkey_required, which the configuration sets: what a key needs on this route, as a query. When Tollkey
-- allows, the action sets txn.tollkey_allowed and who it is (txn.tollkey_key_id and so on), and the request goes on.
-- When it denies, its answer is the client's. Whatever else happens ends in 503. HAProxy goes on with the next rule when
-- Lua fails, so the configuration has to deny what is not allowed.

-- Its host says nothing: the way is the argument.
local URL = "http://127.0.0.1/api/v1/authz/forward-auth?"
-- Longer than the timeouts of the way there, so that those end first.
local TIMEOUT_MS = 10000

-- What Tollkey judges by; all else stays here. Every value is passed on: a second credential or merchant has to be seen.
local ASKED = { "authorization", "x-api-key", "x-commerce-api-key", "x-merchant-id", "x-request-id" }
-- Who it is, as the answer says it.
local IDENTITY = { "key_id", "account_id", "application_id", "mode", "scopes", "merchant_id" }
-- What Tollkey denies with.
local DENIALS = { [400] = true, [401] = true, [403] = true, [429] = true, [503] = true }
-- What of a denial is the client's.
local SAID = { "content-type", "www-authenticate", "retry-after", "x-request-id" }

-- The first of the values that a table of HAProxy's begins to count at 0.
local function first(values)
    return values and values[0]
end

-- The answer to a question about this request, or nil.
local function ask(txn, way, required)
    local presented = txn.http:req_get_headers()
    local headers = {
        ["x-forwarded-method"] = { txn.f:method() },
        ["x-forwarded-uri"] = { txn.f:pathq() },
        ["x-forwarded-for"] = { txn.f:src() },
    }
    for _, name in ipairs(ASKED) do
        local values = presented[name]
        if values then
            headers[name] = {}
            for index = 0, #values do
                table.insert(headers[name], values[index])
            end
        end
    end
    return core.httpclient():get { url = URL .. required, headers = headers, dst = way, timeout = TIMEOUT_MS }
end

local function deny(txn, answer)
    local reply = txn:reply { status = 503 }
    local is_denial = answer and DENIALS[answer.status]
    -- Tollkey's own words are problems; a 503 from the way there is not.
    if is_denial and first(answer.headers["content-type"]) == "application/problem+json" then
        reply:set_status(answer.status)
        for _, name in ipairs(SAID) do
            local value = first(answer.headers[name])
            if value then
                reply:add_header(name, value)
            end
        end
        reply:set_body(answer.body)
    else
        reply:add_header("content-type", "application/problem+json")
        reply:set_body('{"type":"about:blank","title":"Service Unavailable","status":503}')
    end
    txn:done(reply)
end

core.register_action("tollkey", { "http-req" }, function(txn, way)
    local required = txn:get_var("txn.tollkey_required")
    local answer = required and ask(txn, way, required)
    if not answer or answer.status ~= 200 then
        return deny(txn, answer)
    end
    for _, name in ipairs(IDENTITY) do
        local value = first(answer.headers["x-auth-" .. name:gsub("_", "-")])
        if not value then
            return deny(txn) -- not Tollkey's answer
        end
        txn:set_var("txn.tollkey_" .. name, value)
    end
    txn:set_var("txn.tollkey_allowed", true)
end, 1)
