-- wrk -s wrk.lua URL -- FILE CONTENT_TYPE: post a file; the last line is answers, seconds, p99 in ms, and failures
function init(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method, wrk.body = "POST", file:read("*all")
  wrk.headers["Content-Type"] = args[2]
  if args[3] then wrk.headers["Authorization"] = "Bearer " .. args[3] end
  file:close()
end

function done(summary, latency, requests)
  local errors = summary.errors
  local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("%d %f %f %d\n", summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3, failures))
end
