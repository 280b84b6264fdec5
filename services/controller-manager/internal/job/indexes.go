package job

import (
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// noIndex is the index of a pod that has none.
const noIndex = -1

// interval holds the indexes from first to last, inclusive.
type interval struct{ first, last int }

// indexes is a set of completion indexes: sorted intervals that do not touch.
type indexes []interval

// parseIndexes reads "1,3-5". What lies beyond the number of completions, or
// does not parse, is left out.
func parseIndexes(s string, completions int) indexes {
	var out indexes
	for part := range strings.SplitSeq(s, ",") {
		a, b, ranged := strings.Cut(part, "-")
		first, err := strconv.Atoi(a)
		if err != nil {
			continue
		}
		last := first
		if ranged {
			if last, err = strconv.Atoi(b); err != nil {
				continue
			}
		}
		if last = min(last, completions-1); first <= last {
			out = append(out, interval{first, last})
		}
	}
	return out
}

func (s indexes) String() string {
	var b strings.Builder
	for i, v := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(v.first))
		switch {
		case v.last == v.first+1:
			b.WriteByte(',')
			b.WriteString(strconv.Itoa(v.last))
		case v.last > v.first:
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(v.last))
		}
	}
	return b.String()
}

func (s indexes) count() (n int) {
	for _, v := range s {
		n += v.last - v.first + 1
	}
	return n
}

func (s indexes) has(i int) bool {
	_, found := slices.BinarySearchFunc(s, i, func(v interval, i int) int {
		switch {
		case v.last < i:
			return -1
		case v.first > i:
			return 1
		}
		return 0
	})
	return found
}

// with returns the set with more indexes added, in any order.
func (s indexes) with(more ...int) indexes {
	all := slices.Clone(s)
	for _, i := range more {
		all = append(all, interval{i, i})
	}
	return all.normal()
}

func (s indexes) union(other indexes) indexes { return slices.Concat(s, other).normal() }

// normal sorts intervals and joins those that touch; it changes s.
func (s indexes) normal() indexes {
	slices.SortFunc(s, func(a, b interval) int { return a.first - b.first })
	out := s[:0]
	for _, v := range s {
		if n := len(out); n > 0 && v.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, v.last)
			continue
		}
		out = append(out, v)
	}
	return out
}

// missing returns the first n indexes below completions that are not in the set.
func (s indexes) missing(n, completions int) []int {
	var out []int
	next := 0
	for _, v := range append(slices.Clone(s), interval{completions, completions}) {
		for ; next < min(v.first, completions) && len(out) < n; next++ {
			out = append(out, next)
		}
		next = max(next, v.last+1)
	}
	return out
}

// overlap returns how many indexes two sets have in common.
func (s indexes) overlap(other indexes) (n int) {
	for _, a := range s {
		for _, b := range other {
			n += max(min(a.last, b.last)-max(a.first, b.first)+1, 0)
		}
	}
	return n
}

// indexOf returns a pod's completion index.
func indexOf(p *corev1.Pod) int {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 {
		return noIndex
	}
	return i
}
