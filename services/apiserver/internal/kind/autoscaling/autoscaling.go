// Package autoscaling holds the kinds of the group autoscaling: one file a kind and
// version.
//
// Its rules must never look at anything but the objects that they are given.
package autoscaling

import "keelson.dev/services/apiserver/internal/resource"

// Kinds are the rows of the group, the preferred version first.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		HorizontalPodAutoscaler(),
		HorizontalPodAutoscalerV1(),
	}
}
