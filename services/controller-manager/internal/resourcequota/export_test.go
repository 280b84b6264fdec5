package resourcequota

// NewController is New with a window of the test's choice.
var NewController = newController
