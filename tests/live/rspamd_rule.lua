-- What does rspamd say about a message? Whatever the test wants to hear.
--
-- A verdict is JSON, see rspamd.py: that of the message's own X-Test-Verdict header (base64), or
-- else what stands in the file VERDICT. Each message asked about is noted in the file SEEN,
-- a line of JSON with what was known of it.

local ucl = require "ucl"
local util = require "rspamd_util"
local lua_mime = require "lua_mime"

local REQUEST = { "Hostname", "Helo", "From", "Rcpt", "IP", "User", "Queue-Id", "MTA-Name",
  "TLS-Cipher", "TLS-Version", "Flags", "User-Agent", "Settings-ID", "Deliver-To", "Subject" }

local function read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("*a")
  file:close()
  return text
end

local function wanted(task)
  local header = task:get_header("X-Test-Verdict")
  local text
  if header then
    text = tostring(util.decode_base64((header:gsub("%s", ""))))
  else
    text = read(VERDICT)
  end
  if not text or text == "" then return {} end
  local parser = ucl.parser()
  local good, problem = parser:parse_string(text)
  if not good then
    return { action = "soft reject", message = "test verdict: " .. problem }
  end
  return parser:get_object()
end

local function note(task)
  local seen = { request = {}, rcpts = {}, size = task:get_size(), message_id = task:get_message_id() }
  for _, name in ipairs(REQUEST) do
    local value = task:get_request_header(name)
    if value then seen.request[name] = tostring(value) end
  end
  for _, rcpt in ipairs(task:get_recipients("smtp") or {}) do
    table.insert(seen.rcpts, rcpt.addr)
  end
  local from = (task:get_from("smtp") or {})[1]
  seen.from = from and from.addr or ""
  local file = io.open(SEEN, "ab")
  file:write(ucl.to_format(seen, "json-compact"), "\n")
  file:close()
end

local function apply(task, verdict)
  if verdict.milter then task:set_milter_reply(verdict.milter) end
  if verdict.modify_headers then lua_mime.modify_headers(task, verdict.modify_headers) end
  if verdict.subject then task:set_metric_subject(verdict.subject) end
  if verdict.body then task:set_message(verdict.body) end
  for _, key in ipairs(verdict.dkim or {}) do
    -- The reply gets its dkim-signature from the module, as with dkim_signing.
    rspamd_plugins.dkim.sign(task, key)
  end
  if verdict.action or verdict.message then
    task:set_pre_result{
      action = verdict.action or "no action",
      message = verdict.message,
      score = verdict.score,
      module = "test",
    }
  end
end

rspamd_config:register_symbol{
  name = "TEST_VERDICT",
  type = "prefilter",
  priority = 10,
  flags = "empty",
  callback = function(task)
    note(task)
    local verdict = wanted(task)
    if verdict.delay then
      os.execute("sleep " .. tonumber(verdict.delay)) -- the whole worker waits
    end
    apply(task, verdict)
  end,
}

rspamd_config:register_symbol{
  name = "TEST_SCORE",
  type = "normal",
  score = 1.0,
  callback = function(task)
    local verdict = wanted(task)
    if verdict.score and not verdict.action then
      return true, verdict.score, tostring(verdict.score)
    end
  end,
}
