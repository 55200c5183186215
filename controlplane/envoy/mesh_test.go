package envoy

import (
	"slices"
	"strings"
	"testing"
)

func TestAFormatOfLogsThatNoWaypointTakesIsNamedAndNotSent(t *testing.T) {
	for _, c := range []struct{ mesh, field, cause string }{
		{`accessLogFile: /dev/stdout, accessLogFormat: "%NOPE%"`, "accessLogFormat", `unknown operator "NOPE"`},
		{`accessLogFile: /dev/stdout, accessLogFormat: "%REQ(X"`, "accessLogFormat", "no closing parenthesis"},
		{`accessLogFile: /dev/stdout, accessLogEncoding: JSON, accessLogFormat: "not json"`, "accessLogFormat", "invalid"},
		{`accessLogFile: /dev/stdout, accessLogEncoding: JSON, accessLogFormat: "{\"a\": {\"b\": \"%NOPE%\"}}"`, "accessLogFormat", "a: b: "},
		{`extensionProviders: [{name: a, prometheus: {}}, {name: b, envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%"}}}]`, "extensionProviders[1].envoyFileAccessLog.logFormat", "unknown operator"},
		{`extensionProviders: [{name: b, envoyOtelAls: {service: a.b, port: 1, logFormat: {labels: {x: 1}}}}]`, "extensionProviders[0].envoyOtelAls.logFormat", "x: neither"},
		{`accessLogFile: /dev/stdout, accessLogFormat: "%REQ_WITHOUT_QUERY(X?:PATH):9% 100%% %START_TIME(%Y)%"`, "", ""},
	} {
		m, err := ParseMesh([]byte("{" + c.mesh + "}"))
		if err != nil {
			t.Fatal(err)
		}
		var fields []string
		dropFormats(m, func(field string, err error) {
			fields = append(fields, field)
			if !strings.Contains(err.Error(), c.cause) {
				t.Errorf("%s: %v, want %q in it", c.mesh, err, c.cause)
			}
		})
		if want := slices.DeleteFunc([]string{c.field}, func(s string) bool { return s == "" }); !slices.Equal(fields, want) {
			t.Errorf("%s: %q, want %q", c.mesh, fields, want)
		}
		dropFormats(m, func(field string, err error) { t.Errorf("%s is still there: %v", field, err) })
	}
}
