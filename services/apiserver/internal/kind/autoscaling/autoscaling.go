// Package autoscaling contains the kinds of the group autoscaling, with a file for each kind and
// version.
//
// Rules must never read another object than those they are given.
package autoscaling

import "keelson.dev/services/apiserver/internal/resource"

// Kinds are the rows of the group, the preferred version first.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		HorizontalPodAutoscaler(),
		HorizontalPodAutoscalerV1(),
	}
}
