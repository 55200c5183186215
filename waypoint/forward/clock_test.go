package forward

import (
	"testing"
	"time"
)

func TestTimesAreWrittenByTheFormat(t *testing.T) {
	at := time.Date(2026, 11, 5, 3, 4, 9, 12_003_004, time.FixedZone("x", 3600))
	for format, want := range map[string]string{
		"":                              "2026-11-05T02:04:09.012Z",
		"%Y/%m/%dT%H:%M:%S%z":           "2026/11/05T02:04:09+0000",
		"%s.%3f":                        "1793844249.012",
		"%f %9f %6f %1f":                "012003004 012003004 012003 0",
		"%b %e %a %j 100%% %q %":        "Nov  5 Thu 309 100% %q %",
		"%FT%TZ %D %R %I%p %y %B %A %Z": "2026-11-05T02:04:09Z 11/05/26 02:04 02AM 26 November Thursday UTC",
	} {
		if got := string(appendTime(nil, at, format)); got != want {
			t.Errorf("%q: %q, want %q", format, got, want)
		}
	}
}
