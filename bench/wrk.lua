-- wrk -s wrk.lua URL -- FILE CONTENT_TYPE KEY PAUSE: post a file; a key or a pause of "" or 0 is none
-- PAUSE: mean milliseconds between an answer and the next request of its connection
-- the last line is answers, seconds, p99 in ms, those that were not 200, and failures
function init(args)
  local file, pause = assert(io.open(args[1], "rb")), tonumber(args[4])
  wrk.method, wrk.body = "POST", file:read("*all")
  wrk.headers["Content-Type"] = args[2]
  if args[3] ~= "" then wrk.headers["Authorization"] = "Bearer " .. args[3] end
  file:close()
  if pause > 0 then
    function delay() return math.floor(2 * pause * math.random()) end
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failures = errors.connect + errors.read + errors.write + errors.timeout
  local figures = { summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3, errors.status, failures }
  io.write(string.format("%d %f %f %d %d\n", unpack(figures)))
end
