// Package column contains the building blocks of the tables of `kubectl get`: column definitions,
// with the API's own documentation, and the texts of cells.
//
// It must never know about a kind.
package column

import (
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// Texts for values that are missing, not known or not set.
const (
	None    = "<none>"
	Unknown = "<unknown>"
	Unset   = "<unset>"
)

// Documented is a type of k8s.io/api or apimachinery.
type Documented interface{ SwaggerDoc() map[string]string }

// Doc returns the documentation of a field.
func Doc(of Documented, field string) string { return of.SwaggerDoc()[field] }

// New returns a column of the ordinary table.
func New(name, kind, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: kind, Description: description}
}

// Text returns a column of strings.
func Text(name, description string) metav1.TableColumnDefinition {
	return New(name, "string", description)
}

// Wide returns a column of strings that `-o wide` adds.
func Wide(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description, Priority: 1}
}

// AgeColumn returns the column that Age fills.
func AgeColumn() metav1.TableColumnDefinition {
	return Text("Age", Doc(metav1.ObjectMeta{}, "creationTimestamp"))
}

// Age formats the time since t.
func Age(t metav1.Time) string {
	if t.IsZero() {
		return Unknown
	}
	return duration.HumanDuration(time.Since(t.Time))
}

// Or returns s, or other if s is empty.
func Or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// List joins strings. If there are none, it returns None.
func List(items []string) string {
	return Or(strings.Join(items, ","), None)
}

// Some joins the first n strings and adds how many more there are.
func Some(items []string, n int) string {
	if len(items) <= n {
		return List(items)
	}
	return strings.Join(items[:n], ",") + more(len(items)-n)
}

// Pairs formats a map of labels in order. If it is empty, Pairs returns None.
func Pairs(m map[string]string) string {
	pairs := make([]string, 0, len(m))
	for k, v := range m {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return List(pairs)
}

// Selector formats a label selector.
func Selector(s *metav1.LabelSelector) string { return metav1.FormatLabelSelector(s) }

// Containers returns the names and the images of containers.
func Containers(list []corev1.Container) (names, images string) {
	n, i := make([]string, len(list)), make([]string, len(list))
	for c := range list {
		n[c], i[c] = list[c].Name, list[c].Image
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}

// AccessModes returns the short names of volumes' access modes.
func AccessModes(modes []corev1.PersistentVolumeAccessMode) string {
	var short []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{
		{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"},
	} {
		if slices.Contains(modes, m.mode) {
			short = append(short, m.short)
		}
	}
	return strings.Join(short, ",")
}

func more(n int) string { return " + " + strconv.Itoa(n) + " more..." }
