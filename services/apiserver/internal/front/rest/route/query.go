package route

import (
	"net/url"
	"strconv"
	"strings"
)

// Query is a parsed query string. Unknown parameters and malformed pairs are ignored.
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
	// Timeout is the timeout of the request ("30s").
	Timeout string

	DryRun          []string
	FieldManager    string
	FieldValidation string
	Force           *bool

	GracePeriodSeconds *int64
	PropagationPolicy  *string
	OrphanDependents   *bool
	// UID is a precondition of a delete, as ResourceVersion is there.
	UID string
	// IgnoreReadErrors is ignoreStoreReadErrorWithClusterBreakingPotential.
	IgnoreReadErrors *bool

	// Pretty is nil if the parameter is missing.
	Pretty *bool
	// IncludeObject applies to tables.
	IncludeObject string

	// BadTimeoutSeconds, BadLimit and BadGracePeriodSeconds are the errors of invalid numbers.
	// Each matters only to the verbs that read the number.
	BadTimeoutSeconds, BadLimit, BadGracePeriodSeconds error
}

// Each calls f for each decoded pair of a raw query until f returns false.
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

// truth parses a boolean parameter as Kubernetes does: everything but "false" and "0" is true,
// including a name without a value.
func truth(s string) bool { return s != "0" && !strings.EqualFold(s, "false") }

// seen records which parameters have occurred. The first of several counts.
type seen uint32

func (s *seen) first(bit uint) bool {
	if *s&(1<<bit) != 0 {
		return false
	}
	*s |= 1 << bit
	return true
}

// number parses a number of a query, or sets bad.
func number(value string, bad *error) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		*bad = err
	}
	return n
}

// ParseQuery parses a raw query.
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
				v := value // not &value, which would move every value to the heap
				q.PropagationPolicy = &v
			}
		case "orphanDependents":
			if s.first(16) {
				v := truth(value)
				q.OrphanDependents = &v
			}
		case "pretty":
			if s.first(17) && value != "" {
				v, _ := strconv.ParseBool(value) // an invalid value means false
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
