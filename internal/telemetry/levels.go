package telemetry

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Level is an slog level with the names that operators type: off, error, warn, info, debug, trace.
type Level slog.Level

// The levels.
const (
	LevelTrace = Level(slog.LevelDebug - 4)
	LevelDebug = Level(slog.LevelDebug)
	LevelInfo  = Level(slog.LevelInfo)
	LevelWarn  = Level(slog.LevelWarn)
	LevelError = Level(slog.LevelError)
	levelOff   = Level(slog.LevelError + 100)
)

// String returns the name of the level at or below l.
func (l Level) String() string {
	switch {
	case l >= levelOff:
		return "off"
	case l >= LevelError:
		return "error"
	case l >= LevelWarn:
		return "warn"
	case l >= LevelInfo:
		return "info"
	case l >= LevelDebug:
		return "debug"
	}
	return "trace"
}

func parseLevel(s string) (Level, bool) {
	for _, l := range []Level{levelOff, LevelError, LevelWarn, LevelInfo, LevelDebug, LevelTrace} {
		if strings.EqualFold(s, l.String()) {
			return l, true
		}
	}
	switch strings.ToLower(s) { // Envoy's names
	case "warning":
		return LevelWarn, true
	case "critical": // no line of ours is
		return levelOff, true
	}
	return 0, false
}

// Levels says which scopes log at which level; it can be changed while the program runs. Its text form is a list like
// "info,access=debug,ztunnel::proxy=trace": one level without scope for everything else, and levels per scope. A scope
// covers the scopes below it ("proxy" covers "proxy::outbound"); the longest one wins. The prefix "ztunnel::" may be left
// out. Safe from any goroutine.
type Levels struct {
	base    string
	current atomic.Pointer[filter]

	mu sync.Mutex // one writer at a time
}

// filter is a parsed list. Immutable.
type filter struct {
	other  Level
	scopes []scopeLevel // longest scope first
}

type scopeLevel struct {
	name  string // as typed
	scope string // without "ztunnel::"
	level Level
}

// NewLevels starts with base, the list that Reset returns to; an empty base means "info".
func NewLevels(base string) (*Levels, error) {
	f, err := (&filter{other: LevelInfo}).merge(base)
	if err != nil {
		return nil, err
	}
	l := &Levels{base: base}
	l.current.Store(f)
	return l, nil
}

// String returns the list in force.
func (l *Levels) String() string {
	f := l.current.Load()
	parts := make([]string, 0, len(f.scopes)+1)
	for _, s := range f.scopes {
		parts = append(parts, s.name+"="+s.level.String())
	}
	return strings.Join(append(parts, f.other.String()), ",")
}

// Merge changes what list names and leaves the rest. A bad list changes nothing.
func (l *Levels) Merge(list string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := l.current.Load().merge(list)
	if err != nil {
		return err
	}
	l.current.Store(f)
	return nil
}

// Reset returns to the list that the program started with and merges list, which may be empty.
func (l *Levels) Reset(list string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := (&filter{other: LevelInfo}).merge(l.base)
	if err != nil {
		return err
	}
	if f, err = f.merge(list); err != nil {
		return err
	}
	l.current.Store(f)
	return nil
}

// Replace has list stand for everything: scopes without a level in it have that without scope, or info.
func (l *Levels) Replace(list string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := (&filter{other: LevelInfo}).merge(list)
	if err != nil {
		return err
	}
	l.current.Store(f)
	return nil
}

// Of is the level of a scope.
func (l *Levels) Of(scope string) Level {
	f := l.current.Load()
	for i := range f.scopes {
		if covers(f.scopes[i].scope, scope) {
			return f.scopes[i].level
		}
	}
	return f.other
}

func (f *filter) merge(list string) (*filter, error) {
	out := &filter{other: f.other, scopes: slices.Clone(f.scopes)}
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		name, level, scoped := strings.Cut(part, "=")
		if !scoped {
			lvl, ok := parseLevel(part)
			if !ok {
				return nil, fmt.Errorf("%.64q is no level: want off, error, warn, info, debug, trace or scope=level", part)
			}
			out.other = lvl
			continue
		}
		lvl, ok := parseLevel(level)
		if !ok || !validScope(name) {
			return nil, fmt.Errorf("%.64q is no scope=level", part)
		}
		out.set(scopeLevel{name: name, scope: strings.TrimPrefix(name, "ztunnel::"), level: lvl})
	}
	if len(out.scopes) > maxScopes {
		return nil, fmt.Errorf("more than %d scopes", maxScopes)
	}
	return out, nil
}

// maxScopes bounds what an operator can pile up, since each log call looks through the list.
const maxScopes = 64

func validScope(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != ':' && c != '.' && c != '-' && c != '/' {
			return false
		}
	}
	return s != "" && s != "ztunnel::" && len(s) <= 128
}

func (f *filter) set(s scopeLevel) {
	f.scopes = slices.DeleteFunc(f.scopes, func(o scopeLevel) bool { return o.scope == s.scope })
	at := slices.IndexFunc(f.scopes, func(o scopeLevel) bool { return len(o.scope) < len(s.scope) })
	if at < 0 {
		at = len(f.scopes)
	}
	f.scopes = slices.Insert(f.scopes, at, s)
}

// enabled tells whether a line of scope at level is written.
func (l *Levels) enabled(scope string, level Level) bool { return level >= l.Of(scope) }

func covers(above, scope string) bool {
	rest, ok := strings.CutPrefix(scope, above)
	return ok && (rest == "" || strings.HasPrefix(rest, "::") || rest[0] == '.') || above == "ztunnel" // the whole program
}
