package profiles

import (
	"fmt"
	"strings"
	"time"
)

// maxTimeout is the longest time that is given to the kernel, which refuses more
// than INT_MAX ticks (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_set_timeout):
// 24 days and 20 hours where there are 1000 ticks a second.
const maxTimeout = 24 * 24 * time.Hour

// duration reads a text such as "300s" as a time of whole seconds, or complains.
func duration(f field[any], least time.Duration) (time.Duration, bool) {
	if f.at == nil {
		return 0, false
	}
	name := f.at.name
	const units = `a number with its unit, h, m or s: "90s", "5m", "1h30m"`
	text, isText := f.at.value.(string)
	if number, isNumber := f.at.value.(int64); isNumber {
		f.at.bad(fmt.Sprintf("%s must be a time with its unit, not a number", name), fmt.Sprintf("write %s = \"%ds\"", name, max(number, int64(least/time.Second))))
		return 0, false
	}
	if !isText {
		f.at.mistyped(want{`a time such as "300s"`, ""})
		return 0, false
	}
	d, err := time.ParseDuration(text)
	switch {
	case digits(text) && text != "0":
		f.at.bad(fmt.Sprintf("%q has no unit", text), fmt.Sprintf("write %s = %q", name, text+"s"))
	case err != nil && strings.HasSuffix(text, "d") && digits(strings.TrimSuffix(text, "d")):
		f.at.bad(fmt.Sprintf("%q is not a time", text), `the largest unit is the hour: a day is "24h"`)
	case err != nil:
		f.at.bad(fmt.Sprintf("%q is not a time", text), units)
	case d%time.Second != 0:
		f.at.bad(fmt.Sprintf("%s must be whole seconds, not %q", name, text), units)
	case d < least || d > maxTimeout:
		f.at.bad(fmt.Sprintf("%s must be %ds to %dh, not %q", name, least/time.Second, maxTimeout/time.Hour, text), units)
	default:
		return d, true
	}
	return 0, false
}
