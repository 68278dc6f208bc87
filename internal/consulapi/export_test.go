package consulapi

// NotServed lets the test of docs/compatibility.md see what is not served.
var NotServed = notServedPaths
