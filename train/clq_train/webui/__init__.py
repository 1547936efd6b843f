"""Screenshots of web pages with exact boxes of their elements, rendered from packages in Chromium.

sources   packages and families of pages, as data       server    the pages on 127.0.0.1
fetch     packages, by the registries' own clients      compose   pages of our own
sampler   what is rendered, from a seed                 apps      applications that run locally
browser   one page in Chromium: screenshot and findings (extract/*.js)
labels    findings to annotations                       build     many pages, resumable
coco      the files that training reads                 review    contact sheets and checks
"""
