package main

import (
	"regexp"
	"strings"
)

// reason explains differences whose "SCENARIO KIND RESOURCE PATH" matches.
type reason struct {
	where *regexp.Regexp
	text  string
}

func because(where, text string) reason { return reason{regexp.MustCompile(where), text} }

// reasons are all known differences.
var reasons = []reason{}

func reasonFor(scenario string, d difference) string {
	at := strings.Join([]string{scenario, d.kind, d.resource, d.path}, " ")
	for _, r := range reasons {
		if r.where.MatchString(at) {
			return r.text
		}
	}
	return ""
}
