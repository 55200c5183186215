// Package format parses Envoy's format strings, which say what is written into logs, headers and tags of spans. Both ends use it:
// the control plane, to refuse what no waypoint would take, and the waypoint.
package format

import (
	"fmt"
	"strconv"
	"strings"
)

func setOf(names string) map[string]bool {
	m := map[string]bool{}
	for _, n := range strings.Fields(names) {
		m[n] = true
	}
	return m
}

// knownOperators are those of Envoy's format strings that are accepted.
var knownOperators = setOf(`
REQ REQ_WITHOUT_QUERY RESP TRAILER REQUEST_HEADER RESPONSE_HEADER PROTOCOL RESPONSE_CODE RESPONSE_CODE_DETAILS RESPONSE_FLAGS
RESPONSE_FLAGS_LONG START_TIME START_TIME_LOCAL EMIT_TIME DURATION REQUEST_DURATION RESPONSE_DURATION RESPONSE_TX_DURATION
COMMON_DURATION REQUEST_TX_DURATION BYTES_RECEIVED BYTES_SENT UPSTREAM_WIRE_BYTES_SENT UPSTREAM_WIRE_BYTES_RECEIVED
UPSTREAM_HEADER_BYTES_SENT UPSTREAM_HEADER_BYTES_RECEIVED DOWNSTREAM_WIRE_BYTES_SENT DOWNSTREAM_WIRE_BYTES_RECEIVED
DOWNSTREAM_HEADER_BYTES_SENT DOWNSTREAM_HEADER_BYTES_RECEIVED UPSTREAM_HOST UPSTREAM_HOST_NAME
UPSTREAM_HOST_NAME_WITHOUT_PORT UPSTREAM_CLUSTER UPSTREAM_CLUSTER_RAW UPSTREAM_REMOTE_ADDRESS
UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT UPSTREAM_REMOTE_PORT UPSTREAM_LOCAL_ADDRESS UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT
UPSTREAM_LOCAL_PORT UPSTREAM_TRANSPORT_FAILURE_REASON UPSTREAM_CONNECTION_ID UPSTREAM_PROTOCOL UPSTREAM_METADATA
UPSTREAM_REQUEST_ATTEMPT_COUNT UPSTREAM_TLS_VERSION UPSTREAM_TLS_CIPHER UPSTREAM_PEER_URI_SAN UPSTREAM_PEER_SUBJECT
UPSTREAM_LOCAL_URI_SAN DOWNSTREAM_REMOTE_ADDRESS DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_REMOTE_PORT
DOWNSTREAM_DIRECT_REMOTE_ADDRESS DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT DOWNSTREAM_DIRECT_REMOTE_PORT
DOWNSTREAM_LOCAL_ADDRESS DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT DOWNSTREAM_LOCAL_PORT DOWNSTREAM_PEER_URI_SAN
DOWNSTREAM_LOCAL_URI_SAN DOWNSTREAM_PEER_SUBJECT DOWNSTREAM_LOCAL_SUBJECT DOWNSTREAM_PEER_DNS_SAN DOWNSTREAM_LOCAL_DNS_SAN
DOWNSTREAM_PEER_ISSUER DOWNSTREAM_PEER_SERIAL DOWNSTREAM_PEER_FINGERPRINT_256 DOWNSTREAM_PEER_FINGERPRINT_1
DOWNSTREAM_PEER_CERT DOWNSTREAM_TLS_SESSION_ID DOWNSTREAM_TLS_VERSION DOWNSTREAM_TLS_CIPHER
DOWNSTREAM_TRANSPORT_FAILURE_REASON REQUESTED_SERVER_NAME CONNECTION_ID CONNECTION_TERMINATION_DETAILS STREAM_ID UNIQUE_ID
ROUTE_NAME VIRTUAL_CLUSTER_NAME VIRTUAL_HOST_NAME FILTER_CHAIN_NAME DYNAMIC_METADATA CLUSTER_METADATA METADATA FILTER_STATE
UPSTREAM_FILTER_STATE HOSTNAME ENVIRONMENT GRPC_STATUS GRPC_STATUS_NUMBER TRACE_ID QUERY_PARAM QUERY_PARAMS PATH
REQUEST_HEADERS_BYTES RESPONSE_HEADERS_BYTES RESPONSE_TRAILERS_BYTES LOCAL_REPLY_BODY ACCESS_LOG_TYPE CEL
`)

// Piece is a literal, or an operator with its argument and greatest length.
type Piece struct {
	// Text is the literal, if Operator is "".
	Text     string
	Operator string
	// Arg is the operator's argument, Alt the second choice of those that name a header; names of headers are in lower case.
	Arg, Alt string
	// Max is the greatest length of the value in bytes; -1: any.
	Max int
}

// Parse parses a format string: %OPERATOR(argument):length% with literals between, and %% for a percent sign. An unknown
// operator is an error, as it is in Envoy.
func Parse(s string) ([]Piece, error) {
	var pieces []Piece
	lit := func(t string) {
		if n := len(pieces); n > 0 && pieces[n-1].Operator == "" {
			pieces[n-1].Text += t
		} else if t != "" {
			pieces = append(pieces, Piece{Text: t})
		}
	}
	for rest := s; rest != ""; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			lit(rest)
			break
		}
		lit(rest[:i])
		rest = rest[i+1:]
		if strings.HasPrefix(rest, "%") {
			lit("%")
			rest = rest[1:]
			continue
		}
		p, n, err := parseOperator(rest)
		if err != nil {
			return nil, fmt.Errorf("position %d of %q: %w", len(s)-len(rest), s, err)
		}
		pieces = append(pieces, p)
		rest = rest[n:]
	}
	return pieces, nil
}

// parseOperator reads an operator, whose opening percent sign is gone, and how long it is with the closing one.
func parseOperator(s string) (Piece, int, error) {
	n := 0
	for n < len(s) && (s[n] == '_' || 'A' <= s[n] && s[n] <= 'Z' || '0' <= s[n] && s[n] <= '9') {
		n++
	}
	p := Piece{Operator: s[:n], Max: -1}
	if !knownOperators[p.Operator] {
		return p, 0, fmt.Errorf("unknown operator %q", p.Operator)
	}
	if n < len(s) && s[n] == '(' {
		end := closing(s[n:])
		if end < 0 {
			return p, 0, fmt.Errorf("%s: no closing parenthesis", p.Operator)
		}
		p.Arg = s[n+1 : n+end]
		n += end + 1
	}
	if n < len(s) && s[n] == ':' {
		d := n + 1
		for d < len(s) && '0' <= s[d] && s[d] <= '9' {
			d++
		}
		max, err := strconv.Atoi(s[n+1 : d])
		if err != nil {
			return p, 0, fmt.Errorf("%s: malformed length", p.Operator)
		}
		p.Max, n = max, d
	}
	if n >= len(s) || s[n] != '%' {
		return p, 0, fmt.Errorf("%s: no closing %%", p.Operator)
	}
	switch p.Operator {
	case "REQ", "RESP", "TRAILER", "REQUEST_HEADER", "RESPONSE_HEADER", "REQ_WITHOUT_QUERY":
		p.Arg, p.Alt, _ = strings.Cut(strings.ToLower(p.Arg), "?")
		if p.Arg == "" {
			return p, 0, fmt.Errorf("%s: no header name", p.Operator)
		}
	}
	return p, n + 1, nil
}

// closing finds the parenthesis that ends an argument: the one that the end of the operator follows.
func closing(s string) int {
	for i := range len(s) {
		if s[i] != ')' {
			continue
		}
		j := i + 1
		if j < len(s) && s[j] == ':' {
			for j++; j < len(s) && '0' <= s[j] && s[j] <= '9'; j++ {
			}
		}
		if j < len(s) && s[j] == '%' {
			return i
		}
	}
	return -1
}
