package admin

import (
	"net/http"
	"strings"
)

// LogLevels is what /logging shows and changes. Safe from any goroutine.
type LogLevels interface {
	// String returns the filter in force, for example "access=debug,info".
	String() string
	// Merge changes what list names and leaves the rest; an error changes nothing.
	Merge(list string) error
	// Reset returns to the filter of the start and merges list, which may be empty.
	Reset(list string) error
}

const loggingUsage = `usage: POST /logging                      (show the filter)
usage: POST /logging?level=<level>        (change the level of all scopes without one of their own)
usage: POST /logging?level=<scope>=<level>,<scope>=<level>,...
usage: POST /logging?reset                (back to the filter of the start)
usage: POST /logging?reset&level=<level>  (and change it)
levels: off, error, warn, info, debug, trace`

func loggingHandler(levels LogLevels) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			text(w, http.StatusMethodNotAllowed, "%s", loggingUsage)
			return
		}
		q := r.URL.Query()
		list := strings.Join(q["level"], ",")
		var err error
		switch {
		case q.Has("reset"):
			err = levels.Reset(list)
		case list != "":
			err = levels.Merge(list)
		case len(q) > 0:
			text(w, http.StatusBadRequest, "%s", loggingUsage)
			return
		}
		if err != nil {
			text(w, http.StatusBadRequest, "bad level: %v\n%s", err, loggingUsage)
			return
		}
		text(w, http.StatusOK, "current log level is %s", levels)
	})
}
