package route

import (
	"net/url"
	"strconv"
	"strings"
)

// Query is what a query string asks for. Unknown parameters are ignored, as are
// malformed pairs.
type Query struct {
	LabelSelector, FieldSelector string
	ResourceVersion              string
	ResourceVersionMatch         string
	Continue                     string
	Limit                        int64
	Watch                        bool
	AllowWatchBookmarks          bool
	SendInitialEvents            *bool
	TimeoutSeconds               *int64
	// Timeout is the request's own time-out ("30s").
	Timeout string

	DryRun          []string
	FieldManager    string
	FieldValidation string
	Force           *bool

	GracePeriodSeconds *int64
	PropagationPolicy  *string
	OrphanDependents   *bool
	// UID is a precondition of a delete, as is ResourceVersion there.
	UID string
	// IgnoreReadErrors is ignoreStoreReadErrorWithClusterBreakingPotential.
	IgnoreReadErrors *bool

	// Pretty is nil where the client does not say.
	Pretty *bool
	// IncludeObject is for tables.
	IncludeObject string

	// BadTimeoutSeconds, BadLimit and BadGracePeriodSeconds say what is wrong with a
	// number; each matters only to the verbs that read it.
	BadTimeoutSeconds, BadLimit, BadGracePeriodSeconds error
}

// Each calls f with each pair of a raw query, decoded, until it returns false.
func Each(raw string, f func(key, value string) bool) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" || strings.IndexByte(pair, ';') >= 0 {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		var ok bool
		if key, ok = unescape(key); !ok {
			continue
		}
		if value, ok = unescape(value); !ok {
			continue
		}
		if !f(key, value) {
			return
		}
	}
}

func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, true
	}
	s, err := url.QueryUnescape(s)
	return s, err == nil
}

// truth is Kubernetes' reading of a boolean parameter: everything but "false" and
// "0" is true, also the bare name.
func truth(s string) bool { return s != "0" && !strings.EqualFold(s, "false") }

// seen remembers which parameters were there: the first of several counts.
type seen uint32

func (s *seen) first(bit uint) bool {
	if *s&(1<<bit) != 0 {
		return false
	}
	*s |= 1 << bit
	return true
}

// number reads a number of a query, and says what is wrong with it.
func number(value string, bad *error) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		*bad = err
	}
	return n
}

// ParseQuery reads a raw query.
func ParseQuery(raw string) Query {
	var (
		q Query
		s seen
	)
	Each(raw, func(key, value string) bool {
		switch key {
		case "labelSelector":
			if s.first(0) {
				q.LabelSelector = value
			}
		case "fieldSelector":
			if s.first(1) {
				q.FieldSelector = value
			}
		case "resourceVersion":
			if s.first(2) {
				q.ResourceVersion = value
			}
		case "resourceVersionMatch":
			if s.first(3) {
				q.ResourceVersionMatch = value
			}
		case "continue":
			if s.first(4) {
				q.Continue = value
			}
		case "limit":
			if s.first(5) {
				q.Limit = number(value, &q.BadLimit)
			}
		case "watch":
			if s.first(6) {
				q.Watch = truth(value)
			}
		case "allowWatchBookmarks":
			if s.first(7) {
				q.AllowWatchBookmarks = truth(value)
			}
		case "sendInitialEvents":
			if s.first(8) {
				v := truth(value)
				q.SendInitialEvents = &v
			}
		case "timeoutSeconds":
			if s.first(9) {
				n := number(value, &q.BadTimeoutSeconds)
				q.TimeoutSeconds = &n
			}
		case "timeout":
			if s.first(10) {
				q.Timeout = value
			}
		case "dryRun":
			q.DryRun = append(q.DryRun, value)
		case "fieldManager":
			if s.first(11) {
				q.FieldManager = value
			}
		case "fieldValidation":
			if s.first(12) {
				q.FieldValidation = value
			}
		case "force":
			if s.first(13) {
				v := truth(value)
				q.Force = &v
			}
		case "gracePeriodSeconds":
			if s.first(14) {
				n := number(value, &q.BadGracePeriodSeconds)
				q.GracePeriodSeconds = &n
			}
		case "propagationPolicy":
			if s.first(15) {
				v := value // not &value: that would put every value on the heap
				q.PropagationPolicy = &v
			}
		case "orphanDependents":
			if s.first(16) {
				v := truth(value)
				q.OrphanDependents = &v
			}
		case "pretty":
			if s.first(17) && value != "" {
				v, _ := strconv.ParseBool(value) // what is neither is no
				q.Pretty = &v
			}
		case "includeObject":
			if s.first(18) {
				q.IncludeObject = value
			}
		case "uid":
			if s.first(19) {
				q.UID = value
			}
		case "ignoreStoreReadErrorWithClusterBreakingPotential":
			if s.first(20) {
				v := truth(value)
				q.IgnoreReadErrors = &v
			}
		}
		return true
	})
	return q
}
