package check

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The checks below work on bytes, and only use apimachinery, with its regular expressions, for
// the message about an invalid name.

func lowerAlnum(c byte) bool { return 'a' <= c && c <= 'z' || '0' <= c && c <= '9' }

func alnum(c byte) bool { return lowerAlnum(c) || 'A' <= c && c <= 'Z' }

// plainLabel reports whether s is a DNS-1123 label of any length.
func plainLabel(s string) bool {
	if s == "" || !lowerAlnum(s[0]) || !lowerAlnum(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if c := s[i]; !lowerAlnum(c) && c != '-' {
			return false
		}
	}
	return true
}

// Label checks a DNS-1123 label.
func Label(s string) []string {
	if len(s) <= 63 && plainLabel(s) {
		return nil
	}
	return validationutil.IsDNS1123Label(s)
}

func plainSubdomain(s string) bool {
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			if !plainLabel(s[start:i]) {
				return false
			}
			start = i + 1
		}
	}
	return true
}

// Subdomain checks a DNS-1123 subdomain.
func Subdomain(s string) []string {
	if len(s) <= 253 && plainSubdomain(s) {
		return nil
	}
	return validationutil.IsDNS1123Subdomain(s)
}

// word reports whether s has the form of label values and of the name part of label keys.
func word(s string) bool {
	if s == "" || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := 1; i < len(s)-1; i++ {
		if c := s[i]; !alnum(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// LabelKey checks a qualified name: a label's key, a condition type or a resource name.
func LabelKey(s string) []string {
	prefix, name, found := strings.Cut(s, "/")
	if !found {
		prefix, name = "", s
	}
	if len(name) <= 63 && word(name) && (!found || len(prefix) <= 253 && plainSubdomain(prefix)) {
		return nil
	}
	return content.IsLabelKey(s)
}

// LabelValue checks the value of a label.
func LabelValue(s string) []string {
	if s == "" || len(s) <= 63 && word(s) {
		return nil
	}
	return content.IsLabelValue(s)
}

// ConfigKey checks a key of a ConfigMap or Secret.
func ConfigKey(s string) []string {
	ok := s != "" && len(s) <= 253 && s[0] != '.'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = alnum(c) || c == '-' || c == '_' || c == '.'
	}
	if ok {
		return nil
	}
	return validationutil.IsConfigMapKey(s)
}

// EnvName checks the name of an environment variable.
func EnvName(s string) []string {
	ok := s != ""
	for i := 0; ok && i < len(s); i++ {
		ok = alnum(s[i]) || s[i] == '_'
	}
	if ok {
		return nil
	}
	return validationutil.IsRelaxedEnvVarName(s)
}

// PortNumber checks a port that must be set.
func (e *Errors) PortNumber(parent *field.Path, child string, port int) {
	if port < 1 || port > 65535 {
		e.Invalid(parent.Child(child), port, validationutil.InclusiveRangeError(1, 65535))
	}
}

// Labels checks a map of labels.
func (e *Errors) Labels(parent *field.Path, child string, labels map[string]string) {
	for k, v := range labels {
		e.Messages(parent, child, k, LabelKey(k))
		e.Messages(parent, child, v, LabelValue(v))
	}
}

// Selector checks a label selector. nil is valid.
func (e *Errors) Selector(parent *field.Path, child string, s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	if len(s.MatchExpressions) == 0 {
		e.Labels(parent.Child(child), "matchLabels", s.MatchLabels)
		return
	}
	e.Append(validation.ValidateLabelSelector(s, validation.LabelSelectorValidationOptions{}, parent.Child(child)))
}
