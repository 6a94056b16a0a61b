{% include "head.sh" %}
for key in node-*.pub; do ./flwr.sh supernode register "$key" {{ link }}; done
