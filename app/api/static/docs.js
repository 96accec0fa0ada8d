"use strict";

// Addresses are relative to the page, so that the service also works behind a path prefix.
SwaggerUIBundle({
  dom_id: "#swagger-ui",
  url: "openapi.json",
  deepLinking: true,
  tryItOutEnabled: true,
  // the key lives as long as the page, and in its memory only
  persistAuthorization: false,
  // the default sends the document's address to an outside service
  validatorUrl: null,
  // or a link could make this page show a document from elsewhere
  queryConfigEnabled: false,
});
