package kube

import (
	"cmp"
	"log/slog"
	"slices"
	"strconv"
	"strings"
)

// Severity says whether a problem stopped something.
type Severity int

const (
	// Rejected: the file or object was refused and its last good state, if any, stays in force.
	Rejected Severity = iota
	// Ignored: an object or a part of it has no effect here.
	Ignored
	// Warning: it works, and perhaps not as meant.
	Warning
)

// String is the word used in messages.
func (s Severity) String() string {
	switch s {
	case Rejected:
		return "rejected"
	case Ignored:
		return "ignored"
	default:
		return "warning"
	}
}

// Problem is one finding about what a user wrote. Fields that are unknown are empty.
type Problem struct {
	Severity Severity
	// File is the path as given to the source, Line counts from 1.
	File string
	Line int
	// Object is what the finding is about.
	Object Key
	// Field is a path such as "spec.ports[0].port".
	Field string
	// Cause says what is wrong, Accepted what would be right.
	Cause, Accepted string
}

// Error is the problem on one line: where, which object, which field, why, what is accepted.
func (p Problem) Error() string {
	var b strings.Builder
	part := func(s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	place := p.File
	if p.File != "" && p.Line > 0 {
		place += ":" + strconv.Itoa(p.Line)
	}
	part(place)
	if p.Object != (Key{}) {
		part(p.Object.String())
	}
	part(p.Field)
	part(p.Cause)
	if p.Accepted != "" {
		b.WriteString(" (accepted: " + p.Accepted + ")")
	}
	return b.String()
}

// compareProblems orders by file, line, object and field.
func compareProblems(a, b Problem) int {
	return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), a.Object.Compare(b.Object),
		cmp.Compare(a.Field, b.Field), cmp.Compare(a.Cause, b.Cause))
}

// SortProblems orders problems by file, line, object and field.
func SortProblems(problems []Problem) { slices.SortFunc(problems, compareProblems) }

// LogProblems logs what differs between two lists of problems.
func LogProblems(logger *slog.Logger, before, now []Problem) {
	gone := map[Problem]bool{}
	for _, p := range before {
		gone[p] = true
	}
	for _, p := range now {
		if !gone[p] {
			logger.Warn("problem with an object", "severity", p.Severity.String(), "err", p.Error())
		}
		delete(gone, p)
	}
	for p := range gone {
		logger.Info("problem with an object gone", "err", p.Error())
	}
}
