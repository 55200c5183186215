package forward

import (
	"strconv"
	"strings"
	"time"
)

// startTime is Envoy's default form of a time.
const startTime = "2006-01-02T15:04:05.000Z"

// appendTime appends a time in UTC by a format of strftime's, with Envoy's %f and %1f to %9f for parts of a second and %s for
// the whole seconds since 1970; "" is Envoy's default. What is not known stays as it is.
func appendTime(dst []byte, t time.Time, format string) []byte {
	t = t.UTC()
	if format == "" {
		return t.AppendFormat(dst, startTime)
	}
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			dst = append(dst, format[i])
			continue
		}
		i++
		c := format[i]
		if '1' <= c && c <= '9' && i+1 < len(format) && format[i+1] == 'f' {
			i++
			dst = appendFraction(dst, t, int(c-'0'))
			continue
		}
		dst = appendField(dst, t, c)
	}
	return dst
}

// appendFraction appends digits of the part of a second.
func appendFraction(dst []byte, t time.Time, digits int) []byte {
	s := strconv.Itoa(t.Nanosecond())
	s = strings.Repeat("0", 9-len(s)) + s
	return append(dst, s[:digits]...)
}

// layouts are the fields that Go knows by a layout of its own.
var layouts = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'j': "002",
	'b': "Jan", 'h': "Jan", 'B': "January", 'a': "Mon", 'A': "Monday", 'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06",
	'c': "Mon Jan _2 15:04:05 2006", 'z': "-0700", 'Z': "MST",
}

func appendField(dst []byte, t time.Time, c byte) []byte {
	switch c {
	case 's':
		return strconv.AppendInt(dst, t.Unix(), 10)
	case 'f':
		return appendFraction(dst, t, 9)
	case '%':
		return append(dst, '%')
	case 'n':
		return append(dst, '\n')
	case 't':
		return append(dst, '\t')
	}
	if l, ok := layouts[c]; ok {
		return t.AppendFormat(dst, l)
	}
	return append(dst, '%', c)
}
